"""Batches that a `tf.function` takes by itself, so that many steps run in one call.

Keras runs the steps of an execution in one function when it is given an iterator of `tf.data`. So
batches are cut and filled up inside `tf.data`, and what is iterated holds what a step takes.
"""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from tfaccel.distribute import _private, padding
from tfaccel.distribute.batches import Starved, per_replica
from tfaccel.distribute.feed import unwatched
from tfaccel.distribute.split import Cut, Placement, is_nothing, split_dataset


def fits(spec: Any) -> bool:
    """Whether batches of `spec` can have one static shape: all are dense numbers of known sizes.

    >>> fits((tf.TensorSpec([None, 3]), tf.TensorSpec([None], tf.string)))
    False
    >>> fits(tf.TensorSpec([None, None])), fits(tf.TensorSpec([None, 3]))
    (False, True)
    """
    return all(
        isinstance(s, tf.TensorSpec) and s.dtype != tf.string and s.shape[1:].is_fully_defined()
        for s in tf.nest.flatten(spec)
        if not is_nothing(s)
    )


class Passes:
    """The global batches of a dataset, cut and filled up for our replicas, again and again.

    Args:
        dataset: of global batches that `fits`.
        placement: which of all replicas are ours.
        ragged: ``"pad"`` or ``"drop"``, as in `tfaccel.distribute.fit.KerasFit`.
    """

    def __init__(self, dataset: tf.data.Dataset, placement: Placement, ragged: str) -> None:
        self.element_spec = dataset.element_spec
        self._batches = unwatched(split_dataset(dataset, placement, cut=Cut("last")))
        self._placement = placement
        self._ragged = ragged
        self._rows = 0  # of the first batch
        self._pass: Any = None

    def __iter__(self) -> Any:
        """A `tf.data.Iterator` of `Starved` batches.

        Keras takes one to look at a batch before it trains; that one is given again. Otherwise each
        is new, as on one device: a dataset that shuffles draws its next order for each.
        """
        if self._pass is None or self._pass.begun or not self._pass.looked_at:
            with tf.device("/CPU:0"):
                self._pass = _Pass(self._open(), self.element_spec)
        return self._pass

    def _open(self) -> tf.data.Dataset:
        batches = self._batches
        if self._rows == 0:
            source = iter(batches)
            first = next(source, None)
            if first is None:
                return batches.map(lambda parts, shares, rows: _static(parts, shares, 1))
            self._rows = int(first[2])
            if self._ragged == "drop":
                padding.check_divides(self._rows, self._placement.replicas)
            rest = tf.data.Dataset.counter().map(lambda _: source.get_next_as_optional())
            rest = rest.take_while(lambda some: some.has_value()).map(lambda s: s.get_value())
            batches = tf.data.Dataset.from_tensors(first).concatenate(rest)
        if self._ragged == "drop":
            batches = batches.filter(lambda parts, shares, rows: rows >= self._rows)
        static = batches.map(self._checked, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return unwatched(static.prefetch(tf.data.AUTOTUNE))

    @tf.autograph.experimental.do_not_convert
    def _checked(self, parts: Any, shares: tf.Tensor, rows: tf.Tensor) -> Starved:
        says = (
            f"tfaccel: a batch has more rows than the first, which has {self._rows}, expected none "
            "that is larger: the steps of one call have one static shape; compile with "
            "steps_per_execution=1, or make batches of one size."
        )
        with tf.control_dependencies(
            [tf.debugging.assert_less_equal(rows, tf.constant(self._rows, rows.dtype), says)]
        ):
            shares = tf.identity(shares)
        return _static(parts, shares, math.ceil(self._rows / self._placement.replicas))


class _Pass(_private.DatasetIterator):  # type: ignore[misc]
    """An iterator that knows whether somebody looked at it, and whether a step has taken it.

    Args:
        dataset: what is iterated.
        spec: of a global batch.
    """

    def __init__(self, dataset: tf.data.Dataset, spec: Any) -> None:
        super().__init__(dataset)
        self.looked_at = self.begun = False
        self._shapes = tf.nest.map_structure(_any_rows, spec)

    @property
    def _type_spec(self) -> Any:
        # A function that is given an iterator asks for this.
        self.begun = True
        return super()._type_spec

    def __next__(self) -> Any:
        """The shapes of a batch, which are all that Keras looks at, and no batch."""
        self.looked_at = True
        return self._shapes


def _any_rows(spec: Any) -> tf.TensorSpec | None:
    return None if is_nothing(spec) else tf.TensorSpec([None, *spec.shape[1:]], spec.dtype)


def _static(parts: Any, shares: tf.Tensor, rows: int) -> Starved:
    """Each replica's part filled up to `rows` rows."""
    shares = tuple(tf.unstack(shares, len(parts)))
    filled, real = zip(
        *(padding.padded(*part, rows) for part in zip(parts, shares, strict=True)), strict=True
    )
    data = per_replica(filled, _private.FixedRows)
    # Which batches are so short that a replica has no rows is not known when a step is traced.
    return Starved(data, _private.PerReplica(shares), _private.FixedRows(real))
