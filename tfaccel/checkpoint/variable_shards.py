"""The shards that a process holds of a variable: its slices on a mesh, all of it elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

Slices = tuple[slice, ...]


def local_shards(value: Any, chief: bool) -> list[tuple[tf.Tensor, Slices | None]]:
    """The parts of a TensorFlow variable that this process writes, with their slices; None for all.

    Args:
        value: the variable, of any strategy.
        chief: whether this process writes values that all processes hold.
    """
    if hasattr(value, "shards"):
        return [(shard, slices) for slices, shard in value.shards()]
    return [(tf.convert_to_tensor(value), None)] if chief else []


def assign(value: Any, shard: Callable[[Slices | None], tf.Tensor]) -> None:
    """Sets each slice of a TensorFlow variable to the value that `shard` gives."""
    if hasattr(value, "assign_shards"):
        value.assign_shards(shard)
    else:
        value.assign(shard(None))
