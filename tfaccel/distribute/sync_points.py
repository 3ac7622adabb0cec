"""Sync points: where replicas that have diverged are made equal again.

Between two all-reduces that are not done in every step, replicas hold different states, and a
file would be that of one of them. They are synchronized at the end of every epoch (before
`on_epoch_end`), before `evaluate` and `predict`, and before a callback saves during an epoch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfaccel.distribute import _private, step
from tfaccel.distribute.files.file_callbacks import ChiefSaves, SaveCount
from tfaccel.distribute.mixins import mix_in


class SynchronizesBeforeSaving(_private.BeforeSaving):
    """Mixin for a callback that saves every few batches, in a single-process job."""

    save_freq: Any
    _synchronize: Callable[[], None]
    _count: SaveCount | None = None

    def due(self, batch: int) -> bool:
        """Synchronizes the replicas where a save is due."""
        if self._count is None:
            self._count = SaveCount(self.save_freq)
        if not self._count.due(batch):
            return False
        self._synchronize()
        return True


def synchronize_before_saving(callbacks: Any, synchronize: Callable[[], None]) -> None:
    """Makes the callbacks of a `fit` that save during an epoch call `synchronize` first.

    Args:
        callbacks: the `callbacks` argument of `fit`.
        synchronize: makes the replicas equal; called on every worker at the same time, also of
            those that do not save (`files/file_callbacks.py`).
    """
    instances = getattr(callbacks, "callbacks", callbacks)
    saving = (keras.callbacks.ModelCheckpoint, keras.callbacks.BackupAndRestore)
    for callback in tf.nest.flatten(instances) if instances else ():
        if isinstance(callback, ChiefSaves):
            callback.before_saving = synchronize
        elif isinstance(callback, saving):
            mix_in(callback, SynchronizesBeforeSaving)
            callback._synchronize = synchronize


def synchronize_after_epochs(
    model: keras.Model, synchronize: Callable[[keras.Model], None]
) -> None:
    """Makes `fit` call `synchronize(model)` at the end of each epoch.

    There it first reads the results of the model's metrics, before validation and `on_epoch_end`.
    """
    get_results = model.get_metrics_result
    if hasattr(get_results, "_tfaccel_synchronizes"):
        return

    @functools.wraps(get_results)
    def synchronized() -> Any:
        if tf.executing_eagerly() and step.current() is None:
            synchronize(model)
        return get_results()

    synchronized._tfaccel_synchronizes = True  # type: ignore[attr-defined]
    object.__setattr__(model, "get_metrics_result", synchronized)
