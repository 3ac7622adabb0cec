"""What a process holds of a variable: its slices on a mesh, all of it elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

Slices = tuple[slice, ...]


def pieces_of(variable: Any, chief: bool) -> list[tuple[tf.Tensor, Slices | None]]:
    """What this process writes of a variable of Keras, each with its place; None for the whole.

    Args:
        variable: any.
        chief: whether this process writes what all of them hold.
    """
    value = variable.value
    if hasattr(value, "pieces"):
        return [(piece, cut) for cut, piece in value.pieces()]
    return [(tf.convert_to_tensor(np.asarray(variable)), None)] if chief else []


def assign(variable: Any, piece: Callable[[Slices | None], tf.Tensor]) -> None:
    """Puts into a variable of Keras what `piece` gives for each of its slices."""
    value = variable.value
    if hasattr(value, "put_pieces"):
        value.put_pieces(piece)
    else:
        variable.assign(piece(None))
