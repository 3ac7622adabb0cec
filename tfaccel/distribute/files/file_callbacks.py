"""Keras's callbacks that write files, when every worker runs the same script.

Keras 3 has each worker write the same checkpoint. Here the chief writes for all.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tfaccel.distribute import _private
from tfaccel.distribute.broadcast import broadcast
from tfaccel.distribute.files.one_writer import WritingStrategy, on_all, on_chief
from tfaccel.distribute.mixins import mix_in
from tfaccel.distribute.optimizer import optimizers_of
from tfaccel.errors import ClusterError


class ChiefWrites:
    """Mixin for a callback that only writes files: it acts only on the chief."""

    model: Any
    _strategy: WritingStrategy

    def on_train_begin(self, logs: Any = None) -> None:
        """Acts on the chief, while the others wait."""
        self._on_chief(lambda: super(ChiefWrites, self).on_train_begin(logs))  # type: ignore[misc]

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Acts on the chief."""
        if self._strategy.cluster.is_chief:
            super().on_train_batch_end(batch, logs)  # type: ignore[misc]

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Acts on the chief."""
        if self._strategy.cluster.is_chief:
            super().on_epoch_begin(epoch, logs)  # type: ignore[misc]

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Acts on the chief, while the others wait."""
        self._on_chief(lambda: super(ChiefWrites, self).on_epoch_end(epoch, logs))  # type: ignore[misc]

    def on_train_end(self, logs: Any = None) -> None:
        """Acts on the chief, while the others wait: after `fit` all may read what it wrote."""
        self._on_chief(lambda: super(ChiefWrites, self).on_train_end(logs))  # type: ignore[misc]

    def _on_chief(self, work: Callable[[], None]) -> None:
        on_chief(self._strategy, f"run {type(self).__name__}", work, self.model)


class SaveCount:
    """Counts batches as `ModelCheckpoint` does, the same on every worker.

    Args:
        save_freq: the number of batches from one save to the next.
    """

    def __init__(self, save_freq: int) -> None:
        self._save_freq = save_freq
        self._last = -1
        self._unsaved = 0

    def go_on(self, step: int, batches: int) -> None:
        """Continues counting from `step` batches of an epoch, after this many in all.

        >>> count = SaveCount(3)
        >>> count.go_on(step=1, batches=4)
        >>> [count.due(batch) for batch in (1, 2)]
        [False, True]
        """
        self._last, self._unsaved = step - 1, batches % self._save_freq

    def due(self, batch: int) -> bool:
        """Whether to save after `batch`, a number that starts at zero in every epoch.

        >>> count = SaveCount(3)
        >>> [count.due(batch) for batch in (0, 1, 2, 3, 0, 1, 3)]
        [False, False, True, False, False, True, False]
        """
        new_epoch = batch <= self._last
        self._unsaved += batch + 1 if new_epoch else batch - self._last
        self._last = batch
        if self._unsaved < self._save_freq:
            return False
        self._unsaved = 0
        return True


class ChiefSaves(ChiefWrites, _private.BeforeSaving):
    """Mixin for a callback that saves the model: after each epoch, or every few batches."""

    save_freq: Any
    _count: SaveCount | None = None
    _due = False
    before_saving: Callable[[], None] | None = None

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Acts on the chief, while the others wait, if a save is due."""
        if self.save_freq == "epoch":
            super().on_train_batch_end(batch, logs)
            return
        if self._count is None:
            self._count = SaveCount(self.save_freq)
        self._due = self._count.due(batch)
        if not self._due:
            super().on_train_batch_end(batch, logs)
            return
        if self.before_saving is not None:
            self.before_saving()
        self._on_chief(lambda: super(ChiefSaves, self).on_train_batch_end(batch, logs))

    def due(self, batch: int) -> bool:
        """Whether to save now, by the count that all workers share."""
        return self._due


class ChiefBacksUp(ChiefSaves):
    """Mixin for `keras.callbacks.BackupAndRestore`: one backup, from which all resume."""

    backup_dir: Any

    def on_train_begin(self, logs: Any = None) -> None:
        """Restores.

        Where every worker holds the whole model, the chief reads, and broadcasts its weights and
        epoch. Where each holds a part, all read.

        Raises:
            ClusterError: when a worker has not found the backup that the chief has.
        """
        if self._strategy.holds_whole_variables:
            super().on_train_begin(logs)
        else:
            restore = super(ChiefWrites, self).on_train_begin  # type: ignore[misc]
            on_all(self._strategy, f"read {self.backup_dir}", lambda: restore(logs))
        initial = getattr(self.model, "_initial_epoch", None)
        epoch = -1 if initial is None else int(initial)
        chief_epoch = int(broadcast(self._strategy, [np.int64(epoch)])[0])
        if self._strategy.holds_whole_variables:
            if chief_epoch >= 0:
                _private.set_initial_epoch(self.model, chief_epoch)
                _share_state(self.model, self._strategy)
        elif chief_epoch != epoch:
            raise ClusterError(
                f"tfaccel: worker 0 found a backup at epoch {chief_epoch} in {self.backup_dir} and "
                f"worker {self._strategy.cluster.rank} at epoch {epoch} (-1 is none); "
                "expected the same; put backup_dir on a disk that all workers see."
            )


class ChiefLogs:
    """Mixin for `keras.callbacks.TensorBoard`: the other workers' logs are discarded.

    They log too, since a step that writes its own summaries must be the same program everywhere.
    """

    model: Any
    log_dir: str
    histogram_freq: int
    _strategy: WritingStrategy
    _discarded: tempfile.TemporaryDirectory[str] | None = None

    def set_model(self, model: Any) -> None:
        """Writes the graph, on the chief, if requested."""
        requested = self.log_dir
        if not self._strategy.cluster.is_chief:
            self._discarded = tempfile.TemporaryDirectory(prefix="tfaccel-logs-")
            self.log_dir = self._discarded.name
        try:
            self._on_all(lambda: super(ChiefLogs, self).set_model(model))  # type: ignore[misc]
        finally:
            self.log_dir = requested

    def on_train_begin(self, logs: Any = None) -> None:
        """As Keras's; an error of the chief is raised on every worker."""
        self._on_all(lambda: super(ChiefLogs, self).on_train_begin(logs))  # type: ignore[misc]

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Acts on the chief, which reads all weights for its histograms."""

        def log() -> None:
            super(ChiefLogs, self).on_epoch_end(epoch, logs)  # type: ignore[misc]

        reads = self.histogram_freq and epoch % self.histogram_freq == 0
        with self._strategy.gathered_for_file(self.model) if reads else nullcontext():
            on_chief(self._strategy, "run TensorBoard", log, self.model)

    def on_train_end(self, logs: Any = None) -> None:
        """As Keras's, while the others wait: after `fit` all may read what the chief wrote."""
        self._on_all(lambda: super(ChiefLogs, self).on_train_end(logs))  # type: ignore[misc]
        if self._discarded is not None:
            self._discarded.cleanup()

    def _on_all(self, work: Callable[[], None]) -> None:
        on_all(self._strategy, "run TensorBoard", work)


_MIXINS: dict[Any, type] = {
    keras.callbacks.BackupAndRestore: ChiefBacksUp,
    keras.callbacks.ModelCheckpoint: ChiefSaves,
    keras.callbacks.CSVLogger: ChiefWrites,
    keras.callbacks.TensorBoard: ChiefLogs,
}


def write_on_chief(callbacks: Any, strategy: WritingStrategy) -> None:
    """Makes the callbacks of a `fit` that write files follow the policy.

    Args:
        callbacks: the `callbacks` argument of `fit`: None, one callback, a nest of them or a
            `keras.callbacks.CallbackList`.
        strategy: of several workers.
    """
    instances = getattr(callbacks, "callbacks", callbacks)
    for callback in tf.nest.flatten(instances) if instances else ():
        for kind, mixin in _MIXINS.items():
            if isinstance(callback, kind):
                mix_in(callback, mixin)
                callback._strategy = strategy


def warn_of_backups(callbacks: Any) -> None:
    """Warns of a backup from which `fit` does not resume as expected: Keras ignores the batch."""
    instances = getattr(callbacks, "callbacks", callbacks)
    for callback in tf.nest.flatten(instances) if instances else ():
        if isinstance(callback, keras.callbacks.BackupAndRestore) and callback.save_freq != "epoch":
            logging.warning(
                "tfaccel: BackupAndRestore(save_freq=%r) resumes at the beginning of an epoch with "
                "weights of the middle of it, so rows are trained on twice; use "
                "tfaccel.checkpoint.resume(directory, every=%r), which resumes at the batch, or "
                "save_freq='epoch'.",
                callback.save_freq,
                callback.save_freq,
            )


def _share_state(model: keras.Model, strategy: WritingStrategy) -> None:
    """Gives the chief's variables to every worker."""
    optimizer = model.optimizer
    if optimizer is not None and not optimizer.built:
        optimizer.build(model.trainable_variables)
    variables = [*model.variables]
    for one in _all_optimizers(model):
        variables += one.variables
    values = broadcast(strategy, [tf.convert_to_tensor(v) for v in variables])
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _all_optimizers(model: keras.Model) -> list[keras.optimizers.Optimizer]:
    """The optimizers of `model` and of nested models, all of which its files hold."""
    models = [part for part in _private.layers_of(model) if isinstance(part, keras.Model)]
    optimizers = {id(one): one for part in [model, *models] for one in optimizers_of(part)}
    return list(optimizers.values())
