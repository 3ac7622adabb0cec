"""Keras's loop over epochs and their steps: the position of a `fit`, and how to start it elsewhere.

Keras's `fit` starts at the first batch of an epoch; its `BackupAndRestore` writes the batch but
reads only the epoch. Seen with Keras 3.15, watched by `tests/checkpoint/test_resume.py`.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

# The adapter of a `fit`'s data shows what they were; it is not public.
from keras.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter
from keras.src.trainers.data_adapters.grain_dataset_adapter import GrainDatasetAdapter
from keras.src.trainers.data_adapters.py_dataset_adapter import PyDatasetAdapter
from keras.src.trainers.data_adapters.tf_dataset_adapter import TFDatasetAdapter

from tfaccel.distribute._private.keras_trainer import is_trainer
from tfaccel.distribute.call_stack import calls_of_thread
from tfaccel.distribute.mixins import mix_in

__all__ = [
    "ArrayDataAdapter",
    "EpochStart",
    "GrainDatasetAdapter",
    "PyDatasetAdapter",
    "RunningFit",
    "TFDatasetAdapter",
    "number_of_batches",
    "running_fit",
    "running_fits",
    "set_number_of_batches",
    "start_within_epoch",
]

_ENOUGH = 2  # batches of a pass, after which it is more than an inspection


@dataclass(frozen=True)
class RunningFit:
    """A `fit` that has begun.

    Attributes:
        epochs: Keras's iterator over the steps of its epochs.
        callbacks: the `keras.callbacks.CallbackList`.
        initial_epoch: passed to it.
    """

    epochs: Any
    callbacks: Any
    initial_epoch: int

    @property
    def adapter(self) -> Any:
        """Keras's adapter of the data passed to it."""
        return self.epochs.data_adapter


def running_fit() -> RunningFit | None:
    """The `fit` that calls a callback; None for another caller."""
    return next(running_fits(threading.get_ident()), None)


def running_fits(thread: int) -> Iterator[RunningFit]:
    """Each `fit` that a thread is in, the innermost first: a callback may call another one.

    Args:
        thread: as `threading.get_ident` gave it there.
    """
    for call in calls_of_thread(thread):
        if call.function == "fit" and call.is_of("keras") and is_trainer(call.local("self")):
            epochs, callbacks = call.local("epoch_iterator"), call.local("callbacks")
            yield RunningFit(epochs, callbacks, int(call.local("initial_epoch") or 0))


@dataclass
class EpochStart:
    """Where the next epoch of a `fit` starts, and how to get there.

    Attributes:
        step: of the epoch, from 0.
        epochs_before: epochs to read again, so that the data are at their position.
        whole: whether to read all of their batches, or the first ones of each.
        warm: whether to take the first step on the way, as it creates variables.
        data_ready: called before the epoch's own pass over the data begins.
        ready: called when the next batch is the one to resume at.
        logs: of the step before it.
    """

    step: int
    epochs_before: int
    whole: bool
    warm: bool
    data_ready: Callable[[], None]
    ready: Callable[[], None]
    logs: dict[str, float]


def number_of_batches(epoch: Any) -> int | None:
    """The number of batches of Keras's iterator over an epoch, where Keras knows it."""
    batches: int | None = epoch.data_adapter.num_batches
    return batches


def set_number_of_batches(epoch: Any, number: int | None) -> None:
    """Sets the number of batches of Keras's iterator over an epoch; None for unknown."""
    mix_in(epoch.data_adapter, _Counted)
    epoch.data_adapter._batches = epoch._num_batches = number


class _Counted:
    """Mixin for Keras's adapter of data with different numbers of batches on other workers."""

    _batches: int | None

    @property
    def num_batches(self) -> int | None:
        return self._batches


def start_within_epoch(model: Any, epochs: Any, epoch: int, start: EpochStart) -> None:
    """Makes a `fit` that has just begun resume at another position; reads the earlier epochs.

    Args:
        model: being fitted.
        epochs: of `running_fit`.
        epoch: the number of the epoch, from 0.
        start: the position in it.
    """
    model._initial_epoch = epoch
    model._resumed_logs = start.logs
    mix_in(model, _KeepsLogs)
    mix_in(epochs, _StartsWithin)
    epochs._start, epochs._model = start, model
    for _ in range(start.epochs_before):
        epochs._read_epoch(start)


class _KeepsLogs:
    """Mixin for a model: an epoch without remaining steps ends with the saved logs."""

    _resumed_logs: dict[str, float]

    def _get_metrics_result_or_logs(self, logs: Any) -> Any:
        kept, self._resumed_logs = self._resumed_logs, {}
        return super()._get_metrics_result_or_logs(logs or kept)  # type: ignore[misc]


class _StartsWithin:
    """Mixin for Keras's iterator over the steps of an epoch."""

    _start: EpochStart | None
    _model: Any
    _num_batches: int | None
    steps_per_epoch: int | None
    steps_per_execution: int

    def _enumerate_iterator(self) -> Iterator[tuple[int, int, Any]]:
        start, self._start = self._start, None
        if start is None:
            yield from super()._enumerate_iterator()  # type: ignore[misc]
            return
        self._model._initial_epoch = None
        start.data_ready()
        ready = False
        for begin, end, iterator in super()._enumerate_iterator():  # type: ignore[misc]
            if begin < start.step:
                self._read(iterator, start)
                continue
            if not ready:
                start.ready()
                ready = True
                if self._model.stop_training:
                    return
            yield begin, end, iterator
        if not ready:
            start.ready()

    def _read_epoch(self, start: EpochStart) -> None:
        """Goes through an epoch as `fit` does, without taking a step."""
        # Keras learns how many batches there are when the first pass has ended, and requests more
        # of them until then.
        unknown = not (self.steps_per_epoch or self._num_batches)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of finite data, seen before
            with self.catch_stop_iteration():  # type: ignore[attr-defined]
                for begin, _, iterator in super()._enumerate_iterator():  # type: ignore[misc]
                    if start.whole or unknown or begin < _ENOUGH:
                        self._read(iterator, start)

    def _read(self, iterator: Any, start: EpochStart) -> None:
        if start.warm:
            start.warm = False
            self._model.train_function(iterator)
            return
        read = 0
        for _ in zip(range(self.steps_per_execution), iterator, strict=False):
            read += 1
        if not read:
            raise tf.errors.OutOfRangeError(None, None, "End of the dataset")
