"""The iterable that a strategy gives Keras for a dataset: batches placed on their devices.

Keras iterates it from Python. Three properties of its trainer are handled here:

* before training it takes one batch only to inspect shapes, and discards it together with its
  iterator (https://github.com/keras-team/keras/issues/20585): the next iterator starts with that
  batch again, so that a generator loses no rows;
* it calls `zip(range(steps_per_execution), iterator)` for each execution: at the end of the data
  an execution that has run some steps must stop quietly, one that has run none must raise;
* it treats `OutOfRangeError` as the end of the data.

A `keras.utils.PyDataset` may change in its `on_epoch_end`, which Keras calls after that inspection:
prefetched batches are then stale, and the pass restarts. It loses nothing, since its batches are
requested by index. The order that Keras has drawn for the inspection is undone: on one device,
without the inspection, the first order drawn is that of the first epoch.

The threads of a `keras.utils.PyDataset` prefetch on their own, and Keras stops them after that
inspection and after each epoch. Prefetching before Keras would find them stopped, so it is not
done.
"""

from __future__ import annotations

import random
import weakref
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfaccel.distribute import _private
from tfaccel.distribute.profile import profiler
from tfaccel.distribute.worker_activity import DataPass, worker_activity
from tfaccel.errors import InputError


def without_autotune(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """`dataset` without its autotuning thread, unless that was requested.

    At the end of a pass TensorFlow 2.21 waits for that thread, which sleeps for as long as the pass
    has taken so far: an epoch could take twice its time. Without it, parallelism is fixed to the
    number of cores, and buffers grow when found empty.
    """
    options = tf.data.Options()
    if dataset.options().autotune.enabled is None:
        options.autotune.enabled = False
    return dataset.with_options(options)


def in_order(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """`dataset` whose parallel parts keep the order of rows, whatever its options allow.

    Several workers take rows by their position: in orders of their own some rows would be taken
    twice, and others never.
    """
    options = tf.data.Options()
    options.deterministic = True
    return dataset.with_options(options)


class BatchIterable:
    """Batches that can be iterated repeatedly; a subclass defines their source.

    Args:
        threads: Keras's prefetching threads, or None.
        inspected: as in `tfaccel.distribute._private.Caller`. Then this is created just before.
    """

    _tfaccel_batches = True

    def __init__(self, threads: Any = None, inspected: bool = False) -> None:
        self._threads = threads
        self._inspected = inspected
        # Keras's threads may have drawn an order before the first pass opens.
        self._random_state = random.getstate() if inspected else None
        self._source: PushBackIterator | None = None
        self._reader: weakref.ref[BatchIterator] | None = None

    def __iter__(self) -> BatchIterator:
        abandoned = self._reader is None or self._reader() is None
        looked_at = self._source is not None and abandoned and self._source.push_back()
        if looked_at and self._source is not None and self._source.is_of_fit:
            profiler.step_was_none()
        if looked_at and self._inspected:
            looked_at = False
            if self._threads is not None:
                _private.restart_threads(self._threads)
        if self._source is None or not looked_at:
            first = self._source is None
            self._source = None  # its prefetched batches are dropped before the next one reads
            batches = self._open()
            if first and self._inspected:
                batches = self._inspecting(batches)
            self._source = PushBackIterator(batches)
        iterator = self._reading(self._source)
        self._reader = weakref.ref(iterator)
        return iterator

    def _inspecting(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The pass in which Keras inspects a batch's shapes; its random draws are undone."""
        for batch in batches:
            if self._random_state is not None:
                random.setstate(self._random_state)
                self._random_state = None
            yield batch

    def _open(self) -> Iterator[Any]:
        """A new pass over the batches."""
        raise NotImplementedError

    def _reading(self, source: PushBackIterator) -> BatchIterator:
        """The iterator over `source`."""
        return BatchIterator(source)


class BatchIterator:
    """One pass over the batches, as Keras's trainer reads it."""

    _tfaccel_batches = True

    def __init__(self, feed: PushBackIterator) -> None:
        self._feed = feed
        self._at_execution_start = True
        self._pass = DataPass(worker_activity)

    def __iter__(self) -> BatchIterator:
        self._at_execution_start = True  # an execution of one or more steps begins
        return self

    def __next__(self) -> Any:
        if not tf.executing_eagerly():
            raise InputError(
                "tfaccel: next(iterator) was called inside a tf.function, which would train on one "
                "batch again and again; take the batch outside and pass it in."
            )
        self._pass.wait_for_batch()
        profiler.step_ends()
        try:
            batch = next(self._feed)
        except StopIteration:
            self._pass.end()
            if self._at_execution_start:
                raise tf.errors.OutOfRangeError(None, None, "End of the dataset") from None
            raise
        self._at_execution_start = False
        self._pass.begin_batch()
        if self._pass.kind == "fit":
            self._feed.is_of_fit = True
            profiler.step_begins()
        return batch


class PushBackIterator:
    """An iterator of batches that can return its only batch to the start."""

    def __init__(self, source: Iterator[Any]) -> None:
        self.is_of_fit = False
        self._source = source
        self._consumed: list[Any] = []
        self._pushed_back: list[Any] = []
        self._ended = False

    def __next__(self) -> Any:
        if self._pushed_back:
            batch = self._pushed_back.pop()
        else:
            try:
                batch = next(self._source)
            except StopIteration:
                self._ended = True
                raise
        # One batch is enough to know whether only one was taken; do not keep more.
        self._consumed = [batch] if not self._consumed else [None, None]
        return batch

    def push_back(self) -> bool:
        """Takes back the one batch read so far; False when it cannot (more have been read)."""
        if self._ended or len(self._consumed) != 1:
            return False
        self._pushed_back, self._consumed = self._consumed, []
        return True
