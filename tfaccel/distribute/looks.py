"""When somebody may look at a model whose replicas are apart.

Between two all-reduces that are not done in every step, replicas hold different states, and a
file would be that of one of them. They are brought together at the end of every epoch (before
`on_epoch_end`), before `evaluate` and `predict`, and before a callback saves amid an epoch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfaccel.distribute import _private, step
from tfaccel.distribute.adapt import adapt


class SettlesBeforeSaving(_private.BeforeSaving):
    """Mixin for a callback that saves every so many batches."""

    save_freq: Any
    _settle: Callable[[], None]
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
        """Brings the replicas together where a save is due."""
        new_epoch = batch <= self._last
        self._unsaved += batch + 1 if new_epoch else batch - self._last
        self._last = batch
        if self._unsaved < self.save_freq:
            return False
        self._unsaved = 0
        self._settle()
        return True


def before_saving(callbacks: Any, settle: Callable[[], None], writes: bool) -> None:
    """Makes the callbacks of a `fit` that save amid an epoch call `settle` first.

    Args:
        callbacks: the `callbacks` argument of `fit`.
        settle: brings the replicas together; called on every worker at the same time.
        writes: whether this worker saves.
    """
    held = getattr(callbacks, "callbacks", callbacks)
    saving = (keras.callbacks.ModelCheckpoint, keras.callbacks.BackupAndRestore)
    for callback in tf.nest.flatten(held) if held else ():
        if isinstance(callback, saving):
            adapt(callback, SettlesBeforeSaving)
            callback._settle, callback._writes = settle, writes


def after_epochs(model: keras.Model, settle: Callable[[keras.Model], None]) -> None:
    """Makes `fit` call `settle(model)` at the end of each epoch.

    Its first act then, before validation and `on_epoch_end`, is to ask the model for the results
    of its metrics.
    """
    ask = model.get_metrics_result
    if hasattr(ask, "_tfaccel_settles"):
        return

    @functools.wraps(ask)
    def settled() -> Any:
        if tf.executing_eagerly() and step.current() is None:
            settle(model)
        return ask()

    settled._tfaccel_settles = True  # type: ignore[attr-defined]
    object.__setattr__(model, "get_metrics_result", settled)
