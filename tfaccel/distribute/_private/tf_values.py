"""Distributed values: what a replica gets, and how `tf.function` sees it.

TensorFlow exports only their base class, which has no shapes, and the shapes decide when a step is
retraced. Seen with TensorFlow 2.21, watched by `tests/distribute/test_private.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

# What a replica gets: its element of `values`, of any structure.
from tensorflow.python.distribute.values import PerReplica

__all__ = ["PerReplica", "PerReplicaBatch"]


class PerReplicaBatch(PerReplica):  # type: ignore[misc]
    """A global batch over its replicas: one distributed value, for any structure of the batch.

    Keras gets the shapes of a batch from the strategy where every leaf is a distributed value, and
    this is its only leaf; a None in the batch stays a None in each part.

    Args:
        parts: of each replica here, nests of one structure.
        static_rows: whether `tf.function` retraces for every number of rows. Otherwise a step is
            traced once for all batch sizes and sees `None` rows, as with the iterator of a dataset
            on one device.
        has_empty_replicas: whether a replica may have no rows of its own.

    Attributes:
        global_rows: rows of the whole batch, where its creator has counted them.
    """

    global_rows: int | None = None

    def __init__(
        self, parts: Sequence[Any], static_rows: bool = False, has_empty_replicas: bool = False
    ) -> None:
        super().__init__(parts)
        self.static_rows = static_rows
        self.has_empty_replicas = has_empty_replicas

    @property
    def first_has_all(self) -> bool:
        """Whether the first replica has all rows, and the others compute the same redundantly.

        That is how a batch with fewer rows than replicas is passed, unless padded to a static
        shape.
        """
        filled_up = self.static_rows or self.values[0].real is None
        return self.has_empty_replicas and not filled_up

    @property
    def _type_spec(self) -> _BatchSpec:
        spec_of = tf.type_spec_from_value if self.static_rows else _dynamic_rows
        specs = tf.nest.map_structure(lambda v: None if v is None else spec_of(v), self.values)
        return _BatchSpec(specs, self.static_rows, self.has_empty_replicas)


class _BatchSpec(tf.TypeSpec):  # type: ignore[misc]
    """Args: as of `PerReplicaBatch`, with specs for tensors."""

    def __init__(self, parts: Any, static_rows: bool, has_empty_replicas: bool) -> None:
        self._parts = parts
        self._static_rows = static_rows
        self._has_empty_replicas = has_empty_replicas

    @property
    def value_type(self) -> type:
        return PerReplicaBatch

    def _serialize(self) -> tuple[Any, bool, bool]:
        return self._parts, self._static_rows, self._has_empty_replicas

    @property
    def _component_specs(self) -> tuple[Any, ...]:
        return _without_none(self._parts)

    def _to_components(self, value: PerReplicaBatch) -> tuple[Any, ...]:
        return _without_none(value.values)

    def _from_components(self, components: Any) -> PerReplicaBatch:
        rest = iter(components)
        parts = tf.nest.map_structure(lambda s: None if s is None else next(rest), self._parts)
        return PerReplicaBatch(parts, self._static_rows, self._has_empty_replicas)

    def most_specific_common_supertype(self, others: Any) -> Any:
        # Keras creates its nested functions with `reduce_retracing`: for a second shape,
        # `tf.function` requests one spec that fits both, and traces with unknown sizes from then
        # on. Static rows have no such spec.
        if self._static_rows:
            return self if all(self == other for other in others) else None
        return super().most_specific_common_supertype(others)


def _without_none(parts: Any) -> tuple[Any, ...]:
    return tuple(leaf for leaf in tf.nest.flatten(parts) if leaf is not None)


def _dynamic_rows(value: Any) -> Any:
    spec = tf.type_spec_from_value(value)
    shape = spec.shape
    if shape.rank in (None, 0):
        return spec
    shape = [None, *shape[1:]]
    if isinstance(spec, tf.RaggedTensorSpec):
        return tf.RaggedTensorSpec(shape, spec.dtype, spec.ragged_rank, spec.row_splits_dtype)
    return type(spec)(shape, spec.dtype)
