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
from tfaccel.distribute.adapt import adapt


class SynchronizesBeforeSaving(_private.BeforeSaving):
    """Mixin for a callback that saves every so many batches."""

    save_freq: Any
    _synchronize: Callable[[], None]
    _writes: bool
    _last = -1
    _unsaved = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Saves where this worker writes, and takes part in what comes before it elsewhere."""
        if self._writes:
            super().on_train_batch_end(batch, logs)  # type: ignore[misc]
        elif self.save_freq != "epoch":
            self.due(batch)

    def due(self, batch: int) -> bool:
        """Synchronizes the replicas where a save is due."""
        new_epoch = batch <= self._last
        self._unsaved += batch + 1 if new_epoch else batch - self._last
        self._last = batch
        if self._unsaved < self.save_freq:
            return False
        self._unsaved = 0
        self._synchronize()
        return True


def synchronize_before_saving(
    callbacks: Any, synchronize: Callable[[], None], writes: bool
) -> None:
    """Makes the callbacks of a `fit` that save during an epoch call `synchronize` first.

    Args:
        callbacks: the `callbacks` argument of `fit`.
        synchronize: makes the replicas equal; called on every worker at the same time.
        writes: whether this worker saves.
    """
    held = getattr(callbacks, "callbacks", callbacks)
    saving = (keras.callbacks.ModelCheckpoint, keras.callbacks.BackupAndRestore)
    for callback in tf.nest.flatten(held) if held else ():
        if isinstance(callback, saving):
            adapt(callback, SynchronizesBeforeSaving)
            callback._synchronize, callback._writes = synchronize, writes


def synchronize_after_epochs(
    model: keras.Model, synchronize: Callable[[keras.Model], None]
) -> None:
    """Makes `fit` call `synchronize(model)` at the end of each epoch.

    Its first act then, before validation and `on_epoch_end`, is to ask the model for the results
    of its metrics.
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
