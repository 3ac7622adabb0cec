"""Collectives that a step calls by hand, on whatever it has."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfaccel.distribute import _private, step
from tfaccel.distribute.adapt import adapt


class AnyDtype:
    """Mixin for a `tf.distribute.ReplicaContext`: booleans, small integers and nests may travel.

    TensorFlow 2.21 gathers and sums five dtypes over replicas, and the gradient of a nest that it
    gathers is an error ("Shapes of all inputs must match").
    """

    def all_reduce(self, reduce_op: Any, value: Any, options: Any = None) -> Any:
        """Reduces each tensor of a nest over all replicas; booleans to whether any is True."""
        odd = [v for v in tf.nest.flatten(value) if _wide(v) is not None]
        if not odd:
            return super().all_reduce(reduce_op, value, options)  # type: ignore[misc]
        wide = tf.nest.map_structure(_widened, value)
        reduced = super().all_reduce(reduce_op, wide, options)  # type: ignore[misc]
        return tf.nest.map_structure(_as, reduced, value)

    def all_gather(self, value: Any, axis: Any, options: Any = None) -> Any:
        """Concatenates each tensor of a nest over all replicas, in the order of their ids."""
        gather = super().all_gather  # type: ignore[misc]
        # A step's argument is on no device, and TensorFlow asks where it is.
        return tf.nest.map_structure(
            lambda v: _as(gather(tf.identity(_widened(v)), axis, options), v), value
        )


def adapted() -> None:
    """Adapts the context of the replica that we are in."""
    adapt(tf.distribute.get_replica_context(), AnyDtype)


def number() -> int:
    """Which of this worker's replicas we are in."""
    return _private.replica_number()


def _wide(value: Any) -> tf.DType | None:
    """The dtype in which a value travels, where that is another than its own."""
    dtype = getattr(value, "dtype", None)
    if dtype is None or isinstance(value, tf.IndexedSlices):
        return None
    wide = step.wire_dtype(tf.as_dtype(dtype))
    return wide if wide != dtype else None


def _widened(value: Any) -> Any:
    wide = _wide(value)
    return value if wide is None else tf.cast(value, wide)


def _as(total: Any, like: Any) -> Any:
    return total if _wide(like) is None else tf.cast(total, like.dtype)
