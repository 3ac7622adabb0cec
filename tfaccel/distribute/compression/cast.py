"""Gradients that are sent as 16-bit floats."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfaccel.distribute import step
from tfaccel.distribute.compression import fp32_all_reduce


class Cast:
    """Rounds gradients to 16 bits before summing, and the sums again.

    Half the bytes of float32. bfloat16 has float32's range and 8 bits of precision. float16 has 11
    bits and a maximum of 65,504: larger gradients become infinite. Sparse gradients, integers and
    16-bit values are sent unchanged.

    Args:
        name: ``"bfloat16"`` or ``"float16"``.
    """

    def __init__(self, name: str) -> None:
        self._dtype = tf.as_dtype(name)

    def prepare(self, owner: Any, variables: list[Any], strategy: Any) -> None:
        """Keeps no state."""

    def sum(self, owner: Any, grads: list[Any]) -> list[Any]:
        """Sums gradients over replicas."""
        over_mpi = getattr(tf.distribute.get_strategy(), "communication", "") == "mpi"
        add = step.all_reduce_sum if over_mpi else fp32_all_reduce.all_reduce_sum
        sums = iter(add([self._narrow(g) for g in grads if g is not None]))
        return [None if g is None else _cast_back(next(sums), g.dtype) for g in grads]

    def _narrow(self, grad: Any) -> Any:
        if isinstance(grad, tf.IndexedSlices) or not grad.dtype.is_floating:
            return grad
        return tf.cast(grad, self._dtype) if grad.dtype.size > self._dtype.size else grad


def _cast_back(total: Any, dtype: tf.DType) -> Any:
    return total if total.dtype == dtype else tf.cast(total, dtype)
