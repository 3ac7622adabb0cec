"""Gradients that travel as 16-bit floats."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfaccel.distribute import step


class Cast:
    """Rounds gradients to 16 bits before they are summed, and their sums again.

    Half the bytes of float32. bfloat16 has float32's range and 8 bits of precision. float16 has 11
    bits and ends at 65,504: a gradient beyond becomes infinite. Integers and gradients that have 16
    bits already stay as they are.

    Args:
        name: ``"bfloat16"`` or ``"float16"``.
    """

    def __init__(self, name: str) -> None:
        self._dtype = tf.as_dtype(name)

    def prepare(self, owner: Any, variables: list[Any], strategy: Any) -> None:
        """Nothing is remembered."""

    def sum(self, owner: Any, grads: list[Any]) -> list[Any]:
        """Sums gradients over replicas."""
        sums = iter(step.all_reduce_sum([self._narrow(g) for g in grads if g is not None]))
        return [None if g is None else _cast(next(sums), g.dtype) for g in grads]

    def _narrow(self, grad: Any) -> Any:
        wide = grad.dtype.is_floating and grad.dtype.size > self._dtype.size
        return _cast(grad, self._dtype) if wide else grad


def _cast(grad: Any, dtype: tf.DType) -> Any:
    if grad.dtype == dtype:
        return grad
    if isinstance(grad, tf.IndexedSlices):
        return tf.IndexedSlices(tf.cast(grad.values, dtype), grad.indices, grad.dense_shape)
    return tf.cast(grad, dtype)
