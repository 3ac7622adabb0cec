"""The variables of a model and its optimizers, by their position in it.

A checkpoint is a directory with TensorFlow's own checkpoint format in it
(`tf.train.load_checkpoint` reads it). Each device reads back the slices that its own layout needs,
so that a checkpoint of one mesh can be read by another mesh, any other strategy, or a single
device.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import keras

from tfaccel.checkpoint.sharded_files import Shard, open_checkpoint, read, shapes, write
from tfaccel.checkpoint.variable_shards import assign, local_shards
from tfaccel.cluster.cluster import cluster_of
from tfaccel.distribute.optimizer import optimizers_of
from tfaccel.errors import CheckpointError


def save(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Writes the variables of `model` and of its optimizers.

    With several processes every one of them must call, and all must see the same disk. `path` is
    complete at any time: it is replaced when the new checkpoint is complete (on a remote
    filesystem, which renames file by file, nearly so).

    Args:
        model: a built model; if it has an optimizer, its state is saved too.
        path: a directory to create; also on a filesystem of `tf.io.gfile`, such as ``gs://``.

    Raises:
        CheckpointError: when the model is not built, or some process could not write, on all of
            them.

    Example:
        ```python
        tfaccel.checkpoint.save(model, "run/step-1000")
        ...
        tfaccel.checkpoint.restore(model, "run/step-1000")  # on another mesh
        ```
    """
    strategy = model.distribute_strategy
    chief = cluster_of(strategy).is_chief
    shards = [
        Shard(name, tensor, slices, tuple(v.shape))
        for name, v in _named(model)
        for tensor, slices in local_shards(v.value, chief)
    ]
    write(strategy, os.fspath(path), shards)


def restore(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Reads what `save` wrote, under this or another strategy, into `model`.

    Args:
        model: a built model of the same layers and the same optimizer.
        path: the directory of the checkpoint.

    Raises:
        CheckpointError: when there is none, or it belongs to another model.
    """
    reader = open_checkpoint(os.fspath(path))
    stored_shapes = shapes(reader)
    named = list(_named(model))
    for name, variable in named:
        if stored_shapes.get(name) != tuple(variable.shape):
            stored = "nothing" if name not in stored_shapes else f"shape {stored_shapes[name]}"
            raise CheckpointError(
                f"tfaccel: the checkpoint {os.fspath(path)} has {stored} for {variable.path!r} of "
                f"shape {tuple(variable.shape)} (as {name!r}); expected the same model and "
                "optimizer; build the model that was saved."
            )
    for name, variable in named:
        assign(variable.value, partial(read, reader, name, variable.dtype, tuple(variable.shape)))


def _named(model: keras.Model) -> list[tuple[str, Any]]:
    """The variables of `model`, by position: paths change from one instance to the next."""
    if not model.built:
        raise CheckpointError(
            f"tfaccel: model {model.name!r} has no variables yet; expected a built model; call "
            "model.build(input_shape) or fit first."
        )
    of_metrics = {id(v) for metric in model.metrics for v in metric.variables}
    named = [
        (f"model/{i:05d}/{v.name}", v)
        for i, v in enumerate(v for v in model.variables if id(v) not in of_metrics)
    ]
    for number, optimizer in enumerate(optimizers_of(model)):
        if not optimizer.built:
            with model.distribute_strategy.scope():
                optimizer.build(model.trainable_variables)
        named += [(f"optimizer{number}/{i:05d}", v) for i, v in enumerate(optimizer.variables)]
    return named
