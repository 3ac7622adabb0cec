"""A directory of sharded tensors that all processes write together: complete, or absent.

No host needs to hold all of it: every process writes the slices it has to a file of its own, and
the chief lists the files with their checksums.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfaccel.checkpoint import direct_write, manifest
from tfaccel.checkpoint.tensor_file import Shard, TensorFile
from tfaccel.cluster.cluster import cluster_of
from tfaccel.distribute.files.atomic import (
    begin_folder,
    beside,
    inside,
    is_remote,
    remove_folder,
    replace_folder,
)
from tfaccel.distribute.files.one_writer import broadcast_error, error_of, error_text
from tfaccel.errors import CheckpointError

_NAME = "variables-{:05d}.safetensors"  # by the rank of the process


def write(
    strategy: Any, path: str, shards: Sequence[Shard], texts: Mapping[str, str] | None = None
) -> None:
    """Writes a directory; every process must call, and all must see the same disk.

    Args:
        strategy: of the processes.
        path: of the directory, which is replaced when the new one is complete.
        shards: what this process has.
        texts: small files of it, by their names.

    Raises:
        CheckpointError: when some process could not write, on all of them.
    """
    path = path.rstrip("/")
    begun = begin(strategy, path)
    cluster = cluster_of(strategy)
    content = TensorFile(shards)
    failed = error_of(lambda: write_part(begun, cluster.rank, content.pieces(), texts or {}))
    try:
        # A process that could not write waits with the others; its missing files tell.
        _agree(strategy, path, failed if cluster.is_chief else None)
        if cluster.is_chief:
            failed = error_of(lambda: complete(begun, path, cluster.size))
        _agree(strategy, path, failed)
    except CheckpointError:
        discard(strategy, begun)
        raise


def begin(strategy: Any, path: str) -> str:
    """Creates the directory to write to before it is moved to `path`; every process must call.

    Raises:
        CheckpointError: when the chief could not, on all processes.
    """
    begun = beside(path, "writing")
    chief = cluster_of(strategy).is_chief
    _agree(strategy, path, error_of(lambda: begin_folder(begun)) if chief else None)
    return begun


def discard(strategy: Any, begun: str) -> None:
    """Removes what was written of a directory that could not be completed, on the chief."""
    if cluster_of(strategy).is_chief:
        error_of(lambda: remove_folder(begun))  # else the next one removes it


def write_part(
    begun: str, rank: int, pieces: Iterable[np.ndarray], texts: Mapping[str, str]
) -> None:
    """Writes what this process has, then a marker that it is done, with the checksum.

    Args:
        begun: the result of `begin`.
        rank: of this process.
        pieces: the content of its file of tensors, as `TensorFile.pieces` gives it.
        texts: small files of it, by their names.
    """
    name = _NAME.format(rank)
    written = {name: manifest.checksum(*direct_write.write(inside(begun, name), pieces))}
    for text_name, text in texts.items():
        size_and_crc = direct_write.write_text(inside(begun, text_name), text)
        written[text_name] = manifest.checksum(*size_and_crc)
    marker = inside(begun, _done(rank))
    # The chief may look at any time. Remote filesystems show a file once it is closed.
    begun_marker = marker if is_remote(begun) else f"{marker}.part"
    direct_write.write_text(begun_marker, json.dumps(written))
    if begun_marker != marker:
        tf.io.gfile.rename(begun_marker, marker)


def has_all_parts(begun: str, workers: int) -> bool:
    """Whether all processes have written their parts, as far as the directory shows yet."""
    # A file that was looked up by name too early may appear missing for a while (NFS).
    return {_done(rank) for rank in range(workers)} <= set(tf.io.gfile.listdir(begun))


def complete(begun: str, path: str, workers: int) -> None:
    """Lists the parts, and moves the directory into place; on the chief.

    Args:
        begun: the result of `begin`.
        path: its final path.
        workers: that have written.

    Raises:
        OSError: some worker has not written.
    """
    markers = [inside(begun, _done(rank)) for rank in range(workers)]
    missing = [str(rank) for rank, one in enumerate(markers) if not tf.io.gfile.exists(one)]
    if missing:
        raise OSError(f"no data received from worker {', '.join(missing)}")
    checksums: dict[str, manifest.Checksum] = {}
    for marker in markers:
        with tf.io.gfile.GFile(marker) as file:
            checksums |= json.load(file)
        tf.io.gfile.remove(marker)
    manifest.seal(begun, checksums)
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
