"""A directory of sharded tensors that all processes write together: complete, or absent.

No host needs to hold all of it: every process writes the slices it has, in TensorFlow's own
checkpoint format, and the chief merges the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from tfaccel.cluster.cluster import cluster_of
from tfaccel.distribute.files.atomic import begin_folder, beside, inside, replace_folder
from tfaccel.distribute.files.one_writer import broadcast_error, error_of, error_text
from tfaccel.errors import CheckpointError

_NAME = "variables"


@dataclass(frozen=True)
class Shard:
    """A tensor, or a slice of one.

    Attributes:
        name: of the whole.
        tensor: the values.
        slices: where they belong in it; None for the whole.
        shape: of the whole; needed where there are slices.
    """

    name: str
    tensor: tf.Tensor
    slices: tuple[slice, ...] | None = None
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Reader:
    """An open directory.

    Attributes:
        prefix: of TensorFlow's files in it.
        index: TensorFlow's own reader, which knows names, shapes and types.
    """

    prefix: str
    index: Any


def write(strategy: Any, path: str, shards: Sequence[Shard]) -> None:
    """Writes a directory; every process must call, and all must see the same disk.

    Args:
        strategy: of the processes.
        path: of the directory, which is replaced when the new one is complete.
        shards: what this process has.

    Raises:
        CheckpointError: when some process could not write, on all of them.
    """
    path = path.rstrip("/")
    begun = begin(strategy, path)
    cluster = cluster_of(strategy)
    failed = error_of(lambda: write_part(begun, cluster.rank, shards, {}))
    # A process that could not write waits with the others, and is detected by its missing files.
    _agree(strategy, path, failed if cluster.is_chief else None)
    if cluster.is_chief:
        failed = error_of(lambda: complete(begun, path, cluster.size))
    _agree(strategy, path, failed)


def begin(strategy: Any, path: str) -> str:
    """Creates the directory to write to before it is moved to `path`; every process must call.

    Raises:
        CheckpointError: when the chief could not, on all processes.
    """
    begun = beside(path, "writing")
    chief = cluster_of(strategy).is_chief
    _agree(strategy, path, error_of(lambda: begin_folder(begun)) if chief else None)
    return begun


def open_checkpoint(path: str) -> Reader:
    """Opens what `write` wrote.

    Raises:
        CheckpointError: there is none.
    """
    prefix = inside(path.rstrip("/"), _NAME)
    try:
        return Reader(prefix, tf.compat.v1.train.NewCheckpointReader(prefix))
    except (ValueError, tf.errors.OpError):
        raise CheckpointError(
            f"tfaccel: {path} is not a checkpoint; expected a directory written by "
            "tfaccel.checkpoint.save."
        ) from None


def shapes(reader: Reader) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors, by name."""
    return {name: tuple(s) for name, s in reader.index.get_variable_to_shape_map().items()}


def read(
    reader: Reader, name: str, dtype: Any, shape: Sequence[int], slices: tuple[slice, ...] | None
) -> tf.Tensor:
    """A tensor, or a slice of it, on the host.

    Raises:
        tf.errors.OpError: the files are damaged.
    """
    with tf.device("/CPU:0"):
        (value,) = tf.raw_ops.RestoreV2(
            prefix=reader.prefix,
            tensor_names=[name],
            shape_and_slices=[_spec(tuple(shape), slices)],
            dtypes=[tf.as_dtype(dtype)],
        )
    return value


def _spec(shape: tuple[int, ...], slices: tuple[slice, ...] | None) -> str:
    """A slice in the notation of TensorFlow's checkpoints; empty for the whole.

    >>> _spec((8, 16), (slice(None), slice(4, 8)))
    '8 16 0,8:4,4'
    """
    if slices is None or all(s == slice(None) for s in slices):
        return ""
    ranges = [s.indices(n) for s, n in zip(slices, shape, strict=True)]
    return f"{' '.join(map(str, shape))} " + ":".join(f"{a},{b - a}" for a, b, _ in ranges)


def write_part(begun: str, rank: int, shards: Sequence[Shard], texts: Mapping[str, str]) -> None:
    """Writes what this process has, then a marker that it is done.

    Args:
        begun: the result of `begin`.
        rank: of this process.
        shards: what it has.
        texts: small files of it, by their names.
    """
    if shards:
        with tf.device("/CPU:0"):
            tf.raw_ops.SaveV2(
                prefix=inside(begun, f"part-{rank:05d}"),
                tensor_names=[shard.name for shard in shards],
                shape_and_slices=[_spec(shard.shape, shard.slices) for shard in shards],
                tensors=[shard.tensor for shard in shards],
            )
    for name, text in {**texts, _done(rank): ""}.items():
        with tf.io.gfile.GFile(inside(begun, name), "w") as file:
            file.write(text)


def has_all_parts(begun: str, workers: int) -> bool:
    """Whether all processes have written their parts, as far as the directory shows yet."""
    # A file that was looked up by name too early may appear missing for a while (NFS).
    return {_done(rank) for rank in range(workers)} <= set(tf.io.gfile.listdir(begun))


def complete(
    begun: str, path: str, workers: int, finish: Callable[[str], None] | None = None
) -> None:
    """Merges the parts, and moves the directory into place; on the chief.

    Args:
        begun: the result of `begin`.
        path: its final path.
        workers: that have written.
        finish: called with the directory before it is moved into place.

    Raises:
        OSError: some worker has not written.
    """
    missing = [
        str(rank) for rank in range(workers) if not tf.io.gfile.exists(inside(begun, _done(rank)))
    ]
    if missing:
        raise OSError(f"no data received from worker {', '.join(missing)}")
    for rank in range(workers):
        tf.io.gfile.remove(inside(begun, _done(rank)))
    parts = sorted(
        p.removesuffix(".index") for p in tf.io.gfile.glob(inside(begun, "part-*.index"))
    )
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=parts,
        destination_prefix=inside(begun, _NAME),
        delete_old_dirs=False,
    )
    if finish is not None:
        finish(begun)
    replace_folder(begun, path)


def not_written(path: str, failure: str) -> CheckpointError:
    """The error of all processes when some could not write."""
    return CheckpointError(
        f"tfaccel: the checkpoint {path} was not written ({failure}); expected a directory that "
        "every worker can write to."
    )


def _done(rank: int) -> str:
    return f"done-{rank:05d}"


def _agree(strategy: Any, path: str, failed: Exception | None) -> None:
    """Waits for the other processes; all raise the chief's error, and each its own."""
    failure = broadcast_error(strategy, failed)
    if failed is not None:
        failure = error_text(failed)
    if failure:
        raise not_written(path, failure) from failed
