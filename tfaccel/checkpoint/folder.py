"""A folder of tensors that all processes write together: it is complete, or it is not there.

No host needs to hold it whole: every process writes the slices it has, in TensorFlow's own
checkpoint format, and the chief merges the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from tfaccel.distribute.files.atomic import begin_folder, beside, inside, replace_folder
from tfaccel.distribute.files.one_writer import error_of, error_text, tell
from tfaccel.errors import CheckpointError

_NAME = "variables"


@dataclass(frozen=True)
class Piece:
    """A tensor, or a slice of one.

    Attributes:
        name: of the whole.
        tensor: the values.
        cut: where they belong in it; None for the whole.
        shape: of the whole; needed where there is a cut.
    """

    name: str
    tensor: tf.Tensor
    cut: tuple[slice, ...] | None = None
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Reader:
    """A folder that was opened.

    Attributes:
        prefix: of TensorFlow's files in it.
        index: TensorFlow's own reader, which knows names, shapes and types.
    """

    prefix: str
    index: Any


def write(
    strategy: Any,
    path: str,
    pieces: Sequence[Piece],
    texts: Mapping[str, str] | None = None,
    finish: Callable[[str], None] | None = None,
) -> None:
    """Writes a folder; every process must call, and all must see the same disk.

    Args:
        strategy: of the processes.
        path: of the folder, which is replaced when the new one is complete.
        pieces: what this process has.
        texts: small files of this process, by their names.
        finish: called on the chief, with the folder, before it is put in its place.

    Raises:
        CheckpointError: when some process could not write, on all of them.
    """
    folder = path.rstrip("/")
    writing = beside(folder, "writing")
    cluster = getattr(strategy, "cluster", None)
    rank, chief = (cluster.rank, cluster.is_chief) if cluster else (0, True)
    failed = error_of(lambda: begin_folder(writing)) if chief else None
    _agree(strategy, folder, failed)
    failed = error_of(lambda: _write(writing, rank, pieces, texts or {}))
    # A process that could not write waits with the others, and is found out by what is missing.
    _agree(strategy, folder, failed if chief else None)
    if chief:
        workers = cluster.size if cluster else 1
        failed = error_of(lambda: _complete(writing, folder, workers, finish))
    _agree(strategy, folder, failed)


def open_folder(path: str) -> Reader:
    """Opens what `write` wrote.

    Raises:
        CheckpointError: there is none.
    """
    prefix = inside(path.rstrip("/"), _NAME)
    try:
        return Reader(prefix, tf.compat.v1.train.NewCheckpointReader(prefix))
    except (ValueError, tf.errors.OpError):
        raise CheckpointError(
            f"tfaccel: {path} is no checkpoint, expected a folder that tfaccel.checkpoint.save "
            "wrote."
        ) from None


def shapes(reader: Reader) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors, by name."""
    return {name: tuple(s) for name, s in reader.index.get_variable_to_shape_map().items()}


def read(
    reader: Reader, name: str, dtype: Any, shape: Sequence[int], cut: tuple[slice, ...] | None
) -> tf.Tensor:
    """A tensor, or a slice of it, on the host.

    Raises:
        tf.errors.OpError: the files are damaged.
    """
    with tf.device("/CPU:0"):
        (found,) = tf.raw_ops.RestoreV2(
            prefix=reader.prefix,
            tensor_names=[name],
            shape_and_slices=[_spec(tuple(shape), cut)],
            dtypes=[tf.as_dtype(dtype)],
        )
    return found


def _spec(shape: tuple[int, ...], cut: tuple[slice, ...] | None) -> str:
    """A slice in the words of TensorFlow's checkpoints; nothing for the whole.

    >>> _spec((8, 16), (slice(None), slice(4, 8)))
    '8 16 0,8:4,4'
    """
    if cut is None or all(s == slice(None) for s in cut):
        return ""
    ranges = [s.indices(n) for s, n in zip(cut, shape, strict=True)]
    return f"{' '.join(map(str, shape))} " + ":".join(f"{a},{b - a}" for a, b, _ in ranges)


def _write(writing: str, rank: int, pieces: Sequence[Piece], texts: Mapping[str, str]) -> None:
    """Writes what this process has, and then that it has done so."""
    if pieces:
        with tf.device("/CPU:0"):
            tf.raw_ops.SaveV2(
                prefix=inside(writing, f"part-{rank:05d}"),
                tensor_names=[piece.name for piece in pieces],
                shape_and_slices=[_spec(piece.shape, piece.cut) for piece in pieces],
                tensors=[piece.tensor for piece in pieces],
            )
    for name, text in {**texts, f"done-{rank:05d}": ""}.items():
        with tf.io.gfile.GFile(inside(writing, name), "w") as file:
            file.write(text)


def _complete(
    writing: str, folder: str, workers: int, finish: Callable[[str], None] | None
) -> None:
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
    if finish is not None:
        finish(writing)
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
