"""Counts what steps train on: rows, and tokens where the input is a sequence of integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfaccel.distribute import _private


class Throughput:
    """Counts the batches that it sees.

    Args:
        model: being trained; its inputs are tokens if it looks them up in an embedding.
    """

    def __init__(self, model: keras.Model) -> None:
        self._embeds = any(
            "Embedding" in type(layer).__name__ for layer in _private.layers_of(model)
        )
        self._of_rows: Callable[[Any], int | None] | None = None
        self._length: Callable[[Any], int | None] = lambda each: None
        self._rows: int | None = 0
        self._tokens: int | None = 0
        self.last_batch: Any = None

    def see(self, batch: Any) -> None:
        """Counts a batch.

        Args:
            batch: as passed to Keras's step function.
        """
        self.last_batch = batch
        if self._of_rows is None:
            self._of_rows = _rows_of(batch)
            self._length = _length_of(batch) if self._embeds else lambda each: None
        rows, length = self._of_rows(batch), self._length(batch)
        tokens = None if rows is None or length is None else rows * length
        self._rows, self._tokens = _sum(self._rows, rows), _sum(self._tokens, tokens)

    def take(self) -> tuple[int | None, int | None]:
        """Rows and tokens since the last call; None if unknown."""
        taken = self._rows, self._tokens
        self._rows = self._tokens = 0
        return taken


def _sum(total: int | None, number: int | None) -> int | None:
    return None if total is None or number is None else total + number


def _rows_of(batch: Any) -> Callable[[Any], int | None]:
    """A function that returns the rows of a global batch."""
    if isinstance(batch, _private.PerReplicaBatch):
        return lambda each: each.global_rows
    number = _first(batch, lambda t: t.shape.rank)
    return lambda each: None if number is None else _size(tf.nest.flatten(each)[number], 0)


def _length_of(batch: Any) -> Callable[[Any], int | None]:
    """A function that returns the sequence length of a batch."""
    number = _first(_inputs(batch), lambda t: t.shape.rank == 2 and t.dtype.is_integer)
    return lambda each: None if number is None else _size(tf.nest.flatten(_inputs(each))[number], 1)


def _inputs(batch: Any) -> Any:
    """The model's inputs in a batch of inputs, targets and weights."""
    if isinstance(batch, _private.PerReplicaBatch):
        (batch, *_) = batch.values
        batch = getattr(batch, "data", batch)
    return batch[0] if isinstance(batch, tuple) else batch


def _first(nest: Any, wanted: Callable[[Any], Any]) -> int | None:
    """The index of the first matching leaf of a nest."""
    leaves = enumerate(tf.nest.flatten(nest))
    return next((n for n, leaf in leaves if isinstance(leaf, tf.Tensor) and wanted(leaf)), None)


def _size(tensor: Any, axis: int) -> int | None:
    shape = getattr(tensor, "shape", None)
    size = shape[axis] if shape is not None and len(shape) > axis else None
    return None if size is None else int(size)
