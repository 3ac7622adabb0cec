"""What a strategy hands to Keras in place of a dataset: batches that lie with their replicas.

Keras iterates it from Python. Three habits of its trainer are met here:

* before training it takes one batch only to see shapes, and throws it away together with its
  iterator (https://github.com/keras-team/keras/issues/20585): the next iterator starts with that
  batch again, so that a generator loses no rows;
* it calls `zip(range(steps_per_execution), iterator)` for each execution: at the end of the data
  an execution that has run some steps must stop quietly, one that has run none must raise;
* it takes `OutOfRangeError` for the end of the data.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import tensorflow as tf

from tfaccel.distribute import _private
from tfaccel.distribute.split import Placement, split, split_dataset


class Sharded(NamedTuple):
    """A batch over its replicas: `data` and `share` are nests of PerReplica values.

    `share` is each replica's part of all rows (float32 scalars).
    """

    data: Any
    share: Any


class Starved(NamedTuple):
    """As `Sharded`, for a batch with fewer rows than replicas: some replicas have none."""

    data: Any
    share: Any


def shard(batch: Any, placement: Placement) -> Sharded | Starved:
    """Cuts one batch of host tensors that did not come from a dataset (`train_on_batch`)."""
    batch = tf.nest.map_structure(lambda t: t if t is None else tf.convert_to_tensor(t), batch)
    leaves = [t for t in tf.nest.flatten(batch) if t is not None]
    parts, shares, _ = split(leaves, placement)
    whole = []
    for part in parts:
        rest = iter(part)
        whole.append(tf.nest.map_structure(lambda t, r=rest: None if t is None else next(r), batch))
    rows = leaves[0].shape[0]
    starved = rows is not None and rows < placement.replicas
    return _regroup(tuple(whole), tuple(tf.unstack(shares, placement.local)), starved)


class Batches:
    """The global batches of a dataset, each cut for our replicas and lying on their devices."""

    def __init__(
        self, dataset: tf.data.Dataset, placement: Placement, devices: tuple[str, ...]
    ) -> None:
        self.element_spec = dataset.element_spec
        self._dataset = split_dataset(dataset, placement)
        self._placement = placement
        self._devices = devices
        self._feed: _Feed | None = None
        self._reader: weakref.ref[BatchIterator] | None = None

    def __iter__(self) -> BatchIterator:
        abandoned = self._reader is None or self._reader() is None
        if self._feed is None or not (abandoned and self._feed.push_back()):
            self._feed = _Feed(self._open())
        iterator = BatchIterator(self._feed)
        self._reader = weakref.ref(iterator)
        return iterator

    def _open(self) -> Iterator[Any]:
        with tf.device("/CPU:0"):
            source = iter(self._dataset)
        batches = (self._place(*element) for element in source)
        return _ahead(batches) if any("CPU" not in d.upper() for d in self._devices) else batches

    def _place(self, parts: tuple[Any, ...], shares: tf.Tensor, rows: tf.Tensor) -> Any:
        placed = []
        for part, device in zip(parts, self._devices, strict=True):
            placed.append(tf.nest.map_structure(lambda t, d=device: _on_device(t, d), part))
        starved = int(rows) < self._placement.replicas
        return _regroup(tuple(placed), tuple(tf.unstack(shares)), starved)


class BatchIterator:
    """One pass over the batches, in the way Keras's trainer reads it."""

    def __init__(self, feed: _Feed) -> None:
        self._feed = feed
        self._fresh = True

    def __iter__(self) -> BatchIterator:
        self._fresh = True  # an execution of one or more steps begins
        return self

    def __next__(self) -> Any:
        try:
            batch = next(self._feed)
        except StopIteration:
            if self._fresh:
                raise tf.errors.OutOfRangeError(None, None, "End of the dataset") from None
            raise
        self._fresh = False
        return batch


class _Feed:
    """A source of batches that can take its only batch back."""

    def __init__(self, source: Iterator[Any]) -> None:
        self._source = source
        self._taken: list[Any] = []
        self._back: list[Any] = []
        self._ended = False

    def __next__(self) -> Any:
        if self._back:
            batch = self._back.pop()
        else:
            try:
                batch = next(self._source)
            except StopIteration:
                self._ended = True
                raise
        # One batch is enough to know whether only one was taken; do not hold on to more.
        self._taken = [batch] if not self._taken else [None, None]
        return batch

    def push_back(self) -> bool:
        """Takes the one batch back that was read; False when it cannot (the pass is under way)."""
        if self._ended or len(self._taken) != 1:
            return False
        self._back, self._taken = self._taken, []
        return True


def _ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """Starts the copies of the next batch before the current one is used."""
    ready = None
    for batch in batches:
        if ready is not None:
            yield ready
        ready = batch
    if ready is not None:
        yield ready


def _on_device(tensor: Any, device: str) -> Any:
    # Strings, ragged and sparse tensors stay on the host, where their operations are.
    if "CPU" in device.upper() or not isinstance(tensor, tf.Tensor) or tensor.dtype == tf.string:
        return tensor
    with tf.device(device):
        return tf.identity(tensor)


def _regroup(parts: tuple[Any, ...], shares: tuple[Any, ...], starved: bool) -> Sharded | Starved:
    kind = Starved if starved else Sharded
    data = tf.nest.map_structure(
        lambda *t: None if t[0] is None else _private.AnyRows(t), *parts, expand_composites=False
    )
    return kind(data, _private.AnyRows(shares))
