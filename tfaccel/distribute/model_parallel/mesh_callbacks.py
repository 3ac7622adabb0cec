"""Callbacks that write files, when every process holds a part of the model."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfaccel.distribute.adapt import adapt
from tfaccel.distribute.chief_callbacks import ChiefWrites
from tfaccel.errors import ClusterError


class SharedBackup:
    """Mixin for `keras.callbacks.BackupAndRestore`: one backup, which all processes read."""

    model: Any
    backup_dir: Any
    _strategy: Any

    def on_train_begin(self, logs: Any = None) -> None:
        """Restores in every process.

        Raises:
            ClusterError: when a process does not find the backup that the chief found.
        """
        super().on_train_begin(logs)  # type: ignore[misc]
        epoch = getattr(self.model, "_initial_epoch", None)
        mine = np.int64(-1 if epoch is None else epoch)
        (chiefs,) = self._strategy.broadcast([mine])
        if int(chiefs) != int(mine):
            raise ClusterError(
                f"tfaccel: worker 0 found a backup at epoch {int(chiefs)} in {self.backup_dir} and "
                f"worker {self._strategy.cluster.rank} at epoch {int(mine)} (-1 is none), expected "
                "the same; put backup_dir on a disk that all workers see."
            )

    def _save_model(self) -> None:
        if self._strategy.cluster.is_chief:
            super()._save_model()  # type: ignore[misc]
        else:
            self.model.save_weights(f"{self.backup_dir}/latest.weights.h5")  # takes part

    def on_train_end(self, logs: Any = None) -> None:
        """Removes the backup on the chief, while the others wait."""
        if self._strategy.cluster.is_chief:
            super().on_train_end(logs)  # type: ignore[misc]
        self._strategy.broadcast([np.int32(0)])


def write_on_chief(callbacks: Any, strategy: Any) -> None:
    """Adapts the callbacks of a `fit` that writes files; as in `chief_callbacks.py`."""
    held = getattr(callbacks, "callbacks", callbacks)
    for callback in tf.nest.flatten(held) if held else ():
        if isinstance(callback, keras.callbacks.BackupAndRestore):
            adapt(callback, SharedBackup)
        elif isinstance(callback, keras.callbacks.CSVLogger):
            adapt(callback, ChiefWrites)
        else:
            continue
        callback._strategy = strategy
