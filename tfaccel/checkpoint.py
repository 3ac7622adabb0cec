"""Checkpoints that no host need hold whole: every process writes the slices it has.

A checkpoint is a folder with TensorFlow's own checkpoint format in it (`tf.train.load_checkpoint`
reads it). Each device reads back the slices that its own layout wants, so that what one mesh has
written another one can read, and any other strategy, and one device.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfaccel.distribute.optimizer import optimizers_of
from tfaccel.errors import CheckpointError

_NAME = "variables"
Slices = tuple[slice, ...]


def save(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Writes the variables of `model` and of its optimizers.

    With several processes every one of them must call, and all must see the same disk. What stands
    at `path` is whole at any time: it is replaced when the new checkpoint is complete.

    Args:
        model: a built model; with an optimizer, also that one's state.
        path: a folder, which is made.

    Raises:
        CheckpointError: when the model is not built, or the chief could not put it together.

    Example:
        tfaccel.checkpoint.save(model, "run/step-1000")
        ...
        tfaccel.checkpoint.restore(model, "run/step-1000")  # on another mesh
    """
    strategy, folder = model.distribute_strategy, Path(path)
    writing = folder.with_name(f".writing.{folder.name}")
    cluster = getattr(strategy, "cluster", None)
    rank, chief = (cluster.rank, cluster.is_chief) if cluster else (0, True)
    names, specs, tensors = [], [], []
    for name, variable in _named(model):
        for cut, piece in _pieces(variable, chief):
            names.append(name)
            specs.append(_spec(tuple(variable.shape), cut))
            tensors.append(piece)
    if chief:
        shutil.rmtree(writing, ignore_errors=True)  # of a run that was killed
        writing.mkdir(parents=True)
    _wait(strategy)
    if names:
        with tf.device("/CPU:0"):
            tf.raw_ops.SaveV2(
                prefix=str(writing / f"part-{rank:05d}"),
                tensor_names=names,
                shape_and_slices=specs,
                tensors=tensors,
            )
    _wait(strategy)
    failed: Exception | None = None
    if chief:
        try:
            _complete(writing, folder)
        except Exception as error:
            failed = error
    _wait(strategy, failed)


def restore(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Reads what `save` wrote, under this or another strategy, into `model`.

    Args:
        model: a built model of the same layers and the same optimizer.
        path: the folder of the checkpoint.

    Raises:
        CheckpointError: when there is none, or it is another model's.
    """
    prefix = str(Path(path) / _NAME)
    try:
        held = tf.train.load_checkpoint(prefix).get_variable_to_shape_map()
    except (ValueError, tf.errors.OpError):
        raise CheckpointError(
            f"tfaccel: {os.fspath(path)} is no checkpoint, expected a folder that "
            "tfaccel.checkpoint.save wrote."
        ) from None
    named = list(_named(model))
    for name, variable in named:
        if held.get(name) != list(variable.shape):
            found = "nothing" if name not in held else f"shape {tuple(held[name])}"
            raise CheckpointError(
                f"tfaccel: the checkpoint {os.fspath(path)} has {found} for {variable.path!r} of "
                f"shape {tuple(variable.shape)} (as {name!r}), expected the same model and "
                "optimizer; build the model that was saved."
            )
    for name, variable in named:
        _read(prefix, name, variable)


def _named(model: keras.Model) -> list[tuple[str, Any]]:
    """The variables of `model`, by their place: paths change from one instance to the next."""
    if not model.built:
        raise CheckpointError(
            f"tfaccel: model {model.name!r} has no variables yet, expected a built model; call "
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


def _pieces(variable: Any, chief: bool) -> list[tuple[Slices | None, tf.Tensor]]:
    """What this process writes of a variable."""
    value = variable.value
    if hasattr(value, "pieces"):
        return list(value.pieces())
    return [(None, tf.convert_to_tensor(np.asarray(variable)))] if chief else []


def _spec(shape: tuple[int, ...], cut: Slices | None) -> str:
    """A slice in the words of TensorFlow's checkpoints; nothing for the whole.

    >>> _spec((8, 16), (slice(None), slice(4, 8)))
    '8 16 0,8:4,4'
    """
    if cut is None or all(s == slice(None) for s in cut):
        return ""
    ranges = [s.indices(n) for s, n in zip(cut, shape, strict=True)]
    return f"{' '.join(map(str, shape))} " + ":".join(f"{a},{b - a}" for a, b, _ in ranges)


def _read(prefix: str, name: str, variable: Any) -> None:
    shape, value = tuple(variable.shape), variable.value

    def piece(cut: Slices | None) -> tf.Tensor:
        with tf.device("/CPU:0"):
            (read,) = tf.raw_ops.RestoreV2(
                prefix=prefix,
                tensor_names=[name],
                shape_and_slices=[_spec(shape, cut)],
                dtypes=[tf.as_dtype(variable.dtype)],
            )
        return read

    if hasattr(value, "put_pieces"):
        value.put_pieces(piece)
    else:
        variable.assign(piece(None))


def _complete(writing: Path, folder: Path) -> None:
    """Merges the parts, and puts the folder where it belongs."""
    parts = sorted(str(p.with_suffix("")) for p in writing.glob("part-*.index"))
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=parts, destination_prefix=str(writing / _NAME), delete_old_dirs=False
    )
    old = folder.with_name(f".old.{folder.name}")
    shutil.rmtree(old, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        folder.rename(old)
    writing.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _wait(strategy: Any, failed: Exception | None = None) -> None:
    """Waits for the other processes; all learn whether the chief has failed."""
    wrong = failed is not None
    if getattr(strategy, "cluster", None) is not None:
        (said,) = strategy.broadcast([np.int32(wrong)])
        wrong = bool(int(said))
    if failed is not None:
        raise failed
    if wrong:
        raise CheckpointError(
            "tfaccel: worker 0 could not complete the checkpoint that all wrote; see its error."
        )
