"""Checkpoints that no host need hold whole: every process writes the slices it has.

A checkpoint is a folder with TensorFlow's own checkpoint format in it (`tf.train.load_checkpoint`
reads it). Each device reads back the slices that its own layout wants, so that what one mesh has
written another one can read, and any other strategy, and one device.
"""

from __future__ import annotations

import os
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfaccel.distribute.files.atomic import begin_folder, beside, inside, replace_folder
from tfaccel.distribute.files.one_writer import error_of, error_text, tell
from tfaccel.distribute.optimizer import optimizers_of
from tfaccel.errors import CheckpointError

_NAME = "variables"
Slices = tuple[slice, ...]


def save(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Writes the variables of `model` and of its optimizers.

    With several processes every one of them must call, and all must see the same disk. What stands
    at `path` is whole at any time: it is replaced when the new checkpoint is complete (on a remote
    filesystem, which renames file by file, nearly so).

    Args:
        model: a built model; with an optimizer, also that one's state.
        path: a folder, which is made; also on a filesystem of `tf.io.gfile`, such as ``gs://``.

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
    strategy, folder = model.distribute_strategy, _folder(path)
    writing = beside(folder, "writing")
    cluster = getattr(strategy, "cluster", None)
    rank, chief = (cluster.rank, cluster.is_chief) if cluster else (0, True)
    names, specs, tensors = [], [], []
    for name, variable in _named(model):
        for cut, piece in _pieces(variable, chief):
            names.append(name)
            specs.append(_spec(tuple(variable.shape), cut))
            tensors.append(piece)
    failed = error_of(lambda: begin_folder(writing)) if chief else None
    _agree(strategy, folder, failed)
    failed = error_of(lambda: _write(writing, rank, names, specs, tensors))
    # A process that could not write waits with the others, and is found out by what is missing.
    _agree(strategy, folder, failed if chief else None)
    if chief:
        workers = cluster.size if cluster else 1
        failed = error_of(lambda: _complete(writing, folder, workers))
    _agree(strategy, folder, failed)


def restore(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Reads what `save` wrote, under this or another strategy, into `model`.

    Args:
        model: a built model of the same layers and the same optimizer.
        path: the folder of the checkpoint.

    Raises:
        CheckpointError: when there is none, or it is another model's.
    """
    prefix = inside(_folder(path), _NAME)
    try:
        reader = tf.compat.v1.train.NewCheckpointReader(prefix)
        held = reader.get_variable_to_shape_map()
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


def _folder(path: str | os.PathLike[str]) -> str:
    return os.fspath(path).rstrip("/")


def _write(writing: str, rank: int, names: list[str], specs: list[str], tensors: list[Any]) -> None:
    """Writes what this process has, and then that it has done so."""
    if names:
        with tf.device("/CPU:0"):
            tf.raw_ops.SaveV2(
                prefix=inside(writing, f"part-{rank:05d}"),
                tensor_names=names,
                shape_and_slices=specs,
                tensors=tensors,
            )
    with tf.io.gfile.GFile(inside(writing, f"done-{rank:05d}"), "w") as file:
        file.write("")


def _complete(writing: str, folder: str, workers: int) -> None:
    """Merges the parts, and puts the folder where it belongs."""
    done = [inside(writing, f"done-{rank:05d}") for rank in range(workers)]
    missing = [str(rank) for rank, file in enumerate(done) if not tf.io.gfile.exists(file)]
    if missing:
        raise OSError(f"nothing came of worker {', '.join(missing)}")
    for file in done:
        tf.io.gfile.remove(file)
    parts = sorted(
        p.removesuffix(".index") for p in tf.io.gfile.glob(inside(writing, "part-*.index"))
    )
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=parts,
        destination_prefix=inside(writing, _NAME),
        delete_old_dirs=False,
    )
    replace_folder(writing, folder)


def _agree(strategy: Any, folder: str, failed: Exception | None) -> None:
    """Waits for the other processes; all raise what the chief has failed of, and each its own."""
    failure = tell(strategy, failed)
    if failed is not None:
        failure = error_text(failed)
    if failure:
        raise CheckpointError(
            f"tfaccel: the checkpoint {folder} was not written ({failure}), expected a folder that "
            "every worker can write to."
        ) from failed
