"""Callbacks and files when every worker runs the same script.

Keras 3 has each worker write the same checkpoint. Here one worker, the chief, writes for all, and
all resume from what the chief read: workers that resume from different backups train on, wrong,
and nothing says so.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfaccel.distribute import _private
from tfaccel.distribute.adapt import adapt
from tfaccel.distribute.optimizer import optimizers_of
from tfaccel.distribute.step import all_reduce_sum, transport_dtype


class ChiefWrites:
    """Mixin for a callback that only writes files: it acts on the chief alone."""

    _strategy: Any

    def on_train_begin(self, logs: Any = None) -> None:
        """Acts on the chief."""
        if self._strategy.cluster.is_chief:
            super().on_train_begin(logs)  # type: ignore[misc]

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Acts on the chief."""
        if self._strategy.cluster.is_chief:
            super().on_train_batch_end(batch, logs)  # type: ignore[misc]

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Acts on the chief."""
        if self._strategy.cluster.is_chief:
            super().on_epoch_begin(epoch, logs)  # type: ignore[misc]

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Acts on the chief."""
        if self._strategy.cluster.is_chief:
            super().on_epoch_end(epoch, logs)  # type: ignore[misc]

    def on_train_end(self, logs: Any = None) -> None:
        """Acts on the chief, while the others wait: after `fit` all may read what it wrote."""
        if self._strategy.cluster.is_chief:
            super().on_train_end(logs)  # type: ignore[misc]
        self._strategy.broadcast([np.int32(0)])


class ChiefBacksUp(ChiefWrites):
    """Mixin for `keras.callbacks.BackupAndRestore`: one backup, and all resume from it."""

    model: Any

    def on_train_begin(self, logs: Any = None) -> None:
        """Restores on the chief, then hands its weights and its epoch to every worker."""
        super().on_train_begin(logs)
        epoch = getattr(self.model, "_initial_epoch", None)
        (found,) = self._strategy.broadcast([np.int64(-1 if epoch is None else epoch)])
        if int(found) < 0:
            return
        _private.set_initial_epoch(self.model, int(found))
        optimizer = self.model.optimizer
        if optimizer is not None and not optimizer.built:
            optimizer.build(self.model.trainable_variables)
        variables = [*self.model.variables]
        for one in _all_optimizers(self.model):
            variables += one.variables
        values = self._strategy.broadcast([tf.convert_to_tensor(v) for v in variables])
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


def _all_optimizers(model: keras.Model) -> list[keras.optimizers.Optimizer]:
    """The optimizers of `model` and of the models in it, all of which its files hold."""
    models = [part for part in _private.layers_of(model) if isinstance(part, keras.Model)]
    found = {id(one): one for part in [model, *models] for one in optimizers_of(part)}
    return list(found.values())


def write_on_chief(callbacks: Any, strategy: Any) -> None:
    """Adapts the callbacks of a `fit` that writes files.

    Args:
        callbacks: the `callbacks` argument of `fit`: None, one callback, a nest of them or a
            `keras.callbacks.CallbackList`.
        strategy: a strategy with a `cluster`.
    """
    held = getattr(callbacks, "callbacks", callbacks)
    for callback in tf.nest.flatten(held) if held else ():
        if isinstance(callback, keras.callbacks.BackupAndRestore):
            adapt(callback, ChiefBacksUp)
        elif isinstance(callback, (keras.callbacks.ModelCheckpoint, keras.callbacks.CSVLogger)):
            adapt(callback, ChiefWrites)
        else:
            continue
        callback._strategy = strategy


def broadcast(strategy: tf.distribute.Strategy, values: list[Any]) -> list[tf.Tensor]:
    """Gives every worker the chief's values.

    Args:
        strategy: a strategy in whose cross-replica context we are; every worker must call.
        values: tensors or arrays, the same dtypes and shapes on every worker.

    Returns:
        What the chief passed.
    """

    def replica(tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        context = tf.distribute.get_replica_context()
        chief = tf.equal(tf.cast(context.replica_id_in_sync_group, tf.int32), 0)
        # A sum in which all but one give zero.
        sent = [tf.where(chief, t, tf.zeros_like(t)) for t in tensors]
        return [all_reduce_sum(t) for t in sent]

    @tf.function
    def everywhere(tensors: list[tf.Tensor]) -> Any:
        return strategy.run(replica, args=(tensors,))

    tensors = [tf.convert_to_tensor(v) for v in values]
    got = everywhere([tf.cast(t, transport_dtype(t.dtype)) for t in tensors])
    return [
        tf.cast(strategy.experimental_local_results(g)[0], t.dtype)
        for g, t in zip(got, tensors, strict=True)
    ]


def save_atomically(model: keras.Model, rank: int) -> None:
    """Makes `model.save` and `model.save_weights` replace files in one step.

    A script that ends in `model.save(path)` does so on every worker. Each writes a file of its own
    beside the target and renames it, so that what stands at `path` is whole at any time, on a
    shared disk as on a disk of its own. A remote path (``gs://…``) is one for all, and nothing can
    be renamed there: the chief alone writes, and nobody waits for it.
    """
    for name in ("save", "save_weights"):
        write = getattr(model, name)
        if not hasattr(write, "_tfaccel_whole"):
            object.__setattr__(model, name, _atomic_writer(write, rank))


def _atomic_writer(write: Callable[..., Any], rank: int) -> Callable[..., Any]:
    @functools.wraps(write)
    def replaced(filepath: Any, overwrite: bool = True, **kwargs: Any) -> Any:
        path = os.fspath(filepath)
        if "://" in path and rank != 0:
            return None
        plain = path.endswith((".keras", ".h5")) and "://" not in path and not kwargs
        if not plain or not (overwrite or not os.path.exists(path)):
            return write(filepath, overwrite=overwrite, **kwargs)
        folder, base = os.path.split(path)
        own = os.path.join(folder, f".rank{rank}.{base}")
        try:
            write(own, overwrite=True)
            os.replace(own, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(own)
        return None

    replaced._tfaccel_whole = True  # type: ignore[attr-defined]
    return replaced
