"""The shards that a process holds of a variable: its slices on a mesh, all of it elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

Slices = tuple[slice, ...]


def local_shards(value: Any, chief: bool) -> list[tuple[tf.Tensor, Slices | None]]:
    """What this process writes of a variable of TensorFlow, each with its place; None for all.

    Args:
        value: the variable, of any strategy.
        chief: whether this process writes what all of them hold.
    """
    if hasattr(value, "shards"):
        return [(shard, slices) for slices, shard in value.shards()]
    return [(tf.convert_to_tensor(value), None)] if chief else []


def assign(value: Any, shard: Callable[[Slices | None], tf.Tensor]) -> None:
    """Puts into a variable of TensorFlow what `shard` gives for each of its slices."""
    if hasattr(value, "assign_shards"):
        value.assign_shards(shard)
    else:
        value.assign(shard(None))
