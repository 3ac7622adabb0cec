"""Multi-step batches: a `tf.function` iterates over them, so that many steps run in one call.

Keras runs the steps of an execution in one function when it gets a `tf.data` iterator. So batches
are sharded and padded inside `tf.data`, and the iterator returns what a step takes.
"""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from tfaccel.distribute import _private, padding
from tfaccel.distribute.batch_iterator import without_autotune
from tfaccel.distribute.batch_sharding import Placement, ShardingOptions, is_absent
from tfaccel.distribute.batches import padded_batch
from tfaccel.distribute.dataset_sharding import shard_dataset


def has_static_shape(spec: Any) -> bool:
    """Whether batches of `spec` can have one static shape: all are dense numbers of known sizes.

    >>> has_static_shape((tf.TensorSpec([None, 3]), tf.TensorSpec([None], tf.string)))
    False
    >>> has_static_shape(tf.TensorSpec([None, None])), has_static_shape(tf.TensorSpec([None, 3]))
    (False, True)
    """
    return all(
        isinstance(s, tf.TensorSpec) and s.dtype != tf.string and s.shape[1:].is_fully_defined()
        for s in tf.nest.flatten(spec)
        if not is_absent(s)
    )


class MultiStepBatches:
    """The global batches of a dataset, sharded and padded for the local replicas.

    Args:
        dataset: of global batches that `has_static_shape`.
        placement: which of all replicas are local.
        partial_batch: ``"pad"`` or ``"drop"``, as in `tfaccel.distribute.fit.KerasFit`.
    """

    def __init__(self, dataset: tf.data.Dataset, placement: Placement, partial_batch: str) -> None:
        self.element_spec = dataset.element_spec
        self._batches = without_autotune(
            shard_dataset(dataset, placement, sharding=ShardingOptions("last"))
        )
        self._placement = placement
        self._partial_batch = partial_batch
        self._rows = 0  # of the first batch
        self._pass: Any = None

    def __iter__(self) -> Any:
        """A `tf.data.Iterator` of `PerReplicaBatch`es.

        Keras takes one to inspect a batch before it trains; that one is reused. Otherwise each is
        new, as on one device: a shuffling dataset draws its next order for each.
        """
        if self._pass is None or self._pass.started or not self._pass.was_inspected:
            with tf.device("/CPU:0"):
                self._pass = _MultiStepIterator(self._open(), self.element_spec)
        return self._pass

    def _open(self) -> tf.data.Dataset:
        batches = self._batches
        if self._rows == 0:
            source = iter(batches)
            first = next(source, None)
            if first is None:
                return batches.map(
                    lambda parts, fractions, rows: _padded_batch(parts, fractions, 1)
                )
            self._rows = int(first[2])
            if self._partial_batch == "drop":
                padding.check_divides(self._rows, self._placement.replicas)
            rest = tf.data.Dataset.counter().map(lambda _: source.get_next_as_optional())
            rest = rest.take_while(lambda some: some.has_value()).map(lambda s: s.get_value())
            batches = tf.data.Dataset.from_tensors(first).concatenate(rest)
        if self._partial_batch == "drop":
            batches = batches.filter(lambda parts, fractions, rows: rows >= self._rows)
        static = batches.map(self._checked, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return without_autotune(static.prefetch(tf.data.AUTOTUNE))

    @tf.autograph.experimental.do_not_convert
    def _checked(self, parts: Any, fractions: tf.Tensor, rows: tf.Tensor) -> Any:
        message = (
            f"tfaccel: a batch has more rows than the first, which has {self._rows}; expected none "
            "that is larger: the steps of one call have one static shape; compile with "
            "steps_per_execution=1, or make batches of one size."
        )
        with tf.control_dependencies(
            [tf.debugging.assert_less_equal(rows, tf.constant(self._rows, rows.dtype), message)]
        ):
            fractions = tf.identity(fractions)
        return _padded_batch(parts, fractions, math.ceil(self._rows / self._placement.replicas))


class _MultiStepIterator(_private.DatasetIterator):  # type: ignore[misc]
    """An iterator that knows whether it was inspected, and whether a step has taken it.

    Args:
        dataset: to iterate over.
        spec: of a global batch.
    """

    def __init__(self, dataset: tf.data.Dataset, spec: Any) -> None:
        super().__init__(dataset)
        self.was_inspected = self.started = False
        self._shapes = tf.nest.map_structure(_dynamic_rows, spec)

    @property
    def _type_spec(self) -> Any:
        # A function that gets an iterator requests this.
        self.started = True
        return super()._type_spec

    def __next__(self) -> Any:
        """The shapes of a batch without its values, as Keras only inspects shapes."""
        self.was_inspected = True
        return self._shapes


def _dynamic_rows(spec: Any) -> tf.TensorSpec | None:
    return None if is_absent(spec) else tf.TensorSpec([None, *spec.shape[1:]], spec.dtype)


def _padded_batch(parts: Any, fractions: tf.Tensor, rows: int) -> _private.PerReplicaBatch:
    """Each replica's part padded to `rows` rows."""
    # It is unknown during tracing which batches leave a replica without rows.
    return padded_batch(parts, tf.unstack(fractions, len(parts)), rows, has_empty_replicas=True)
