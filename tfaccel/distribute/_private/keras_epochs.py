"""Keras's loop over epochs and their steps: where a `fit` is, and how it starts somewhere else.

Keras's `fit` starts at the first batch of an epoch; its `BackupAndRestore` writes the batch and
reads the epoch alone. Seen with Keras 3.15, watched by `tests/checkpoint/test_resume.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

# What Keras makes of the data of a `fit` tells what they were; it is public nowhere.
from keras.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter
from keras.src.trainers.data_adapters.grain_dataset_adapter import GrainDatasetAdapter
from keras.src.trainers.data_adapters.py_dataset_adapter import PyDatasetAdapter
from keras.src.trainers.data_adapters.tf_dataset_adapter import TFDatasetAdapter

from tfaccel.distribute._private.keras_trainer import is_trainer
from tfaccel.distribute.adapt import adapt
from tfaccel.distribute.call_stack import calls

__all__ = [
    "ArrayDataAdapter",
    "EpochStart",
    "GrainDatasetAdapter",
    "PyDatasetAdapter",
    "RunningFit",
    "TFDatasetAdapter",
    "running_fit",
    "start_within_epoch",
]

_ENOUGH = 2  # batches of a pass, after which it is no mere look at the first one


@dataclass(frozen=True)
class RunningFit:
    """A `fit` that has begun.

    Attributes:
        epochs: Keras's iterator over the steps of its epochs.
        callbacks: the `keras.callbacks.CallbackList`.
        initial_epoch: that it was given.
    """

    epochs: Any
    callbacks: Any
    initial_epoch: int

    @property
    def adapter(self) -> Any:
        """What Keras makes of the data it was given."""
        return self.epochs.data_adapter


def running_fit() -> RunningFit | None:
    """The `fit` that calls a callback; None where something else does."""
    for call in calls():
        if call.function == "fit" and call.is_of("keras") and is_trainer(call.local("self")):
            epochs, callbacks = call.local("epoch_iterator"), call.local("callbacks")
            return RunningFit(epochs, callbacks, int(call.local("initial_epoch") or 0))
    return None


@dataclass
class EpochStart:
    """Where the next epoch of a `fit` starts, and what is done on the way.

    Attributes:
        step: of the epoch, from 0.
        epochs_before: that are read again, so that the data are where they were.
        whole: whether all of their batches are, or the first ones of each.
        warm: whether the first step on the way is taken, as it makes variables.
        data_ready: called before the epoch's own pass over the data begins.
        ready: called when the next batch is the one to go on with.
        logs: of the step before it.
    """

    step: int
    epochs_before: int
    whole: bool
    warm: bool
    data_ready: Callable[[], None]
    ready: Callable[[], None]
    logs: dict[str, float]


def start_within_epoch(model: Any, epochs: Any, epoch: int, start: EpochStart) -> None:
    """Makes a `fit` that has just begun go on where another one was; reads the earlier epochs.

    Args:
        model: that is fitted.
        epochs: of `running_fit`.
        epoch: the number of the epoch, from 0.
        start: where in it.
    """
    model._initial_epoch = epoch
    model._resumed_logs = start.logs
    adapt(model, _KeepsLogs)
    adapt(epochs, _StartsWithin)
    epochs._start, epochs._model = start, model
    for _ in range(start.epochs_before):
        epochs._read_epoch(start)


class _KeepsLogs:
    """Mixin for a model: an epoch that has no step left ends with the logs that were kept."""

    _resumed_logs: dict[str, float]

    def _get_metrics_result_or_logs(self, logs: Any) -> Any:
        kept, self._resumed_logs = self._resumed_logs, {}
        return super()._get_metrics_result_or_logs(logs or kept)  # type: ignore[misc]


class _StartsWithin:
    """Mixin for Keras's iterator over the steps of an epoch."""

    _start: EpochStart | None
    _model: Any
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
        """Goes through an epoch as `fit` does, and takes no step."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of data that end, which were given before
            with self.catch_stop_iteration():  # type: ignore[attr-defined]
                for begin, _, iterator in super()._enumerate_iterator():  # type: ignore[misc]
                    if start.whole or begin < _ENOUGH:
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
