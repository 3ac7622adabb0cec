"""The variables of a model and its optimizers, by their position in it.

A checkpoint is a directory of safetensors files, one of each process. Each device reads back the
slices that its own layout needs, so that a checkpoint of one mesh can be read by another mesh, any
other strategy, or a single device.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import keras
import tensorflow as tf

from tfaccel.checkpoint import manifest, optimizer_parts
from tfaccel.checkpoint.sharded_files import write
from tfaccel.checkpoint.sharded_reader import open_checkpoint
from tfaccel.checkpoint.tensor_file import Shard
from tfaccel.checkpoint.tensorflow_reader import TensorFlowReader
from tfaccel.checkpoint.variable_shards import assign, local_shards
from tfaccel.cluster.cluster import cluster_of
from tfaccel.distribute.broadcast import broadcast_text
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
    write(strategy, os.fspath(path), shards, optimizer_parts.texts(model) if chief else {})


def restore(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Reads what `save` wrote, under this or another strategy, into `model`.

    With several processes every one of them must call.

    Args:
        model: a built model of the same layers and the same optimizer.
        path: the directory of the checkpoint.

    Raises:
        CheckpointError: when there is none, it is damaged, or belongs to another model.
    """
    path = os.fspath(path).rstrip("/")
    _raise_if_damaged(model.distribute_strategy, path)
    reader = open_checkpoint(path)
    shapes = reader.shapes()
    named = _named(model, optimizer_parts.read(path))
    for name, variable in named:
        ours = _kind(variable.dtype, variable.shape)
        stored = _kind(reader.dtype(name), shapes[name]) if name in shapes else "nothing"
        if stored != ours:
            raise CheckpointError(
                f"tfaccel: the checkpoint {path} has {stored} for {variable.path!r} of {ours} (as "
                f"{name!r}); expected the same model and optimizer; build the model that was saved."
            )
    for name, variable in named:
        assign(variable.value, partial(reader.read, name))


def _kind(dtype: Any, shape: Any) -> str:
    return f"{tf.as_dtype(dtype).name} of shape {tuple(shape)}"


def _raise_if_damaged(strategy: Any, path: str) -> None:
    """Raises on all processes what the chief finds; TensorFlow's format has its own checksums."""
    if manifest.is_sealed(path):
        wrong = manifest.damage(path) if cluster_of(strategy).is_chief else ""
        if getattr(strategy, "cluster", None) is not None:
            wrong = broadcast_text(strategy, wrong)
    else:
        older = isinstance(open_checkpoint(path), TensorFlowReader)
        wrong = "" if older else "it has no manifest.json"
    if wrong:
        raise CheckpointError(
            f"tfaccel: the checkpoint {path} is damaged ({wrong}); expected the files as they were "
            "saved; restore another one."
        )


def _named(
    model: keras.Model, trained_by: optimizer_parts.TrainedBy | None = None
) -> list[tuple[str, Any]]:
    """The variables of `model`, by position: paths change from one instance to the next.

    Args:
        model: whose variables they are.
        trained_by: of the model that was saved.
    """
    if not model.built:
        raise CheckpointError(
            f"tfaccel: model {model.name!r} has no variables yet; expected a built model; call "
            "model.build(input_shape) or fit first."
        )
    own = optimizer_parts.own_variables(model)
    named = [(f"model/{i:05d}/{v.name}", v) for i, v in enumerate(own)]
    optimizers = optimizers_of(model)
    optimizer_parts.build(model, optimizers, trained_by or [])
    for number, optimizer in enumerate(optimizers):
        if optimizer.built:
            variables = enumerate(optimizer.variables)
            named += [(f"optimizer{number}/{i:05d}", v) for i, v in variables]
    return named
