"""Collectives that a step calls explicitly, on any kind of value."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfaccel.distribute import _private, step
from tfaccel.distribute.call_stack import calls
from tfaccel.distribute.mixins import mix_in


class AnyDtype:
    """Mixin for a `tf.distribute.ReplicaContext`: supports booleans, small integers and nests.

    TensorFlow 2.21 gathers and sums five dtypes over replicas, and the gradient of a gathered nest
    is an error ("Shapes of all inputs must match").
    """

    def all_reduce(self, reduce_op: Any, value: Any, options: Any = None) -> Any:
        """Reduces each tensor of a nest over all replicas; booleans to whether any is True.

        Raises:
            ValueError: in the first-step check, for rows, if replicas have unequal numbers of them:
                a failed collective would break all others, or end the process.
        """
        if step.is_checking_unequal_rows() and not next(calls()).is_of_a_library():
            shapes = [getattr(v, "shape", None) for v in tf.nest.flatten(value)]
            if any(shape is not None and not shape.is_fully_defined() for shape in shapes):
                raise ValueError("it reduces tensors of unknown shapes over the replicas by hand")
        odd = [v for v in tf.nest.flatten(value) if _transport_dtype(v) is not None]
        if not odd:
            return super().all_reduce(reduce_op, value, options)  # type: ignore[misc]
        wide = tf.nest.map_structure(_to_transport_dtype, value)
        reduced = super().all_reduce(reduce_op, wide, options)  # type: ignore[misc]
        return tf.nest.map_structure(_to_original_dtype, reduced, value)

    def all_gather(self, value: Any, axis: Any, options: Any = None) -> Any:
        """Concatenates each tensor of a nest over all replicas, in the order of their ids."""
        gather = super().all_gather  # type: ignore[misc]
        # A step's argument has no device, which TensorFlow needs.
        return tf.nest.map_structure(
            lambda v: _to_original_dtype(
                gather(tf.identity(_to_transport_dtype(v)), axis, options), v
            ),
            value,
        )


def adapt_context() -> None:
    """Adapts the context of the current replica."""
    mix_in(tf.distribute.get_replica_context(), AnyDtype)


def local_replica_id() -> int:
    """The index of the current replica in this worker."""
    return _private.local_replica_index()


def _transport_dtype(value: Any) -> tf.DType | None:
    """The dtype in which a value is sent, if not its own."""
    dtype = getattr(value, "dtype", None)
    if dtype is None or isinstance(value, tf.IndexedSlices):
        return None
    wide = step.transport_dtype(tf.as_dtype(dtype))
    return wide if wide != dtype else None


def _to_transport_dtype(value: Any) -> Any:
    wide = _transport_dtype(value)
    return value if wide is None else tf.cast(value, wide)


def _to_original_dtype(total: Any, like: Any) -> Any:
    return total if _transport_dtype(like) is None else tf.cast(total, like.dtype)
