"""Distributed values: what a replica is handed, and how `tf.function` sees it.

TensorFlow exports their base class alone, which says nothing of shapes, and the shapes decide when
a step is traced again. Seen with TensorFlow 2.21, watched by `tests/distribute/test_private.py`.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

# What a replica is handed, and how tf.function sees it. An empty one stands for None in a batch.
from tensorflow.python.distribute.values import PerReplica, PerReplicaSpec

__all__ = ["DynamicRows", "PerReplica", "PerReplicaSpec", "StaticRows"]


class DynamicRows(PerReplica):  # type: ignore[misc]
    """A PerReplica batch whose number of rows `tf.function` does not look at.

    A step is then traced once for all batch sizes and sees `None` rows, as with the iterator of
    a dataset on one device. TensorFlow asks a value for its `_type_spec`.
    """

    @property
    def _type_spec(self) -> PerReplicaSpec:
        return PerReplicaSpec(*(_dynamic_rows(tf.type_spec_from_value(v)) for v in self.values))


def _dynamic_rows(spec: Any) -> Any:
    shape = spec.shape
    if shape.rank in (None, 0):
        return spec
    shape = [None, *shape[1:]]
    if isinstance(spec, tf.RaggedTensorSpec):
        return tf.RaggedTensorSpec(shape, spec.dtype, spec.ragged_rank, spec.row_splits_dtype)
    return type(spec)(shape, spec.dtype)


class StaticRows(PerReplica):  # type: ignore[misc]
    """A PerReplica batch with a static shape, which a batch of another size does not change.

    Keras makes its functions, one within the other, with `reduce_retracing`: where a second shape
    comes, `tf.function` asks the two specs for one that fits both, and traces with unknown sizes
    from then on. These have none.
    """

    @property
    def _type_spec(self) -> PerReplicaSpec:
        return _StaticSpec(*(tf.type_spec_from_value(v) for v in self.values))


class _StaticSpec(PerReplicaSpec):  # type: ignore[misc]
    @property
    def value_type(self) -> type:
        return StaticRows

    def _from_components(self, components: Any) -> StaticRows:
        return StaticRows(components)

    def most_specific_common_supertype(self, others: Any) -> _StaticSpec | None:
        return self if all(self == other for other in others) else None
