"""Writes checkpoints in the background; training pauses only while the state is copied.

Collectives must run in the same order on all processes, so only the training threads use them, at
points that all reach. Next to each of them a thread writes the part of its process; the chief's
then waits until the files show that all have, and moves the directory into place.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from tfaccel.checkpoint import low_priority, sharded_files
from tfaccel.checkpoint.host_buffer import HostBuffer
from tfaccel.checkpoint.tensor_file import Shard, TensorFile
from tfaccel.cluster.cluster import cluster_of
from tfaccel.distribute.broadcast import decode, encode
from tfaccel.distribute.files.one_writer import broadcast_error, error_of, error_text

_POLL_INTERVAL_S = 0.2  # for the files of other processes
_MARGIN = 1 << 20  # bytes, for the states of callbacks and datasets
_SETTLE_S = 60.0  # for those of processes that may have been lost

_begun: list[_Writing] = []  # in this process, still running


class BackgroundWriter:
    """Writes one checkpoint at a time; every process must make the same calls.

    Args:
        strategy: of the processes.
        asynchronous: whether training continues meanwhile; if not, the state is not copied, and
            `finish` is to follow `start`.
    """

    def __init__(self, strategy: Any, asynchronous: bool = True) -> None:
        self._strategy = strategy
        self._buffer = HostBuffer() if asynchronous else None
        self._cluster = cluster_of(strategy)
        self._writing: _Writing | None = None

    def reserve(self, shards: Sequence[Shard]) -> None:
        """Makes host memory ready in the background.

        Args:
            shards: like those that `start` will be given.
        """
        # Their sizes alone: a tensor that is held makes the next step copy its variable.
        if self._buffer is not None:
            self._buffer.reserve(TensorFile(shards).size + _MARGIN)

    def failed(self) -> bool:
        """Whether this process has failed; `finish` raises it on all."""
        return self._writing is not None and self._writing.error is not None

    def start(
        self,
        path: str,
        shards: Sequence[Shard],
        texts: Mapping[str, str],
        then: Callable[[], None],
    ) -> None:
        """Starts writing the current state; call `finish` first.

        Args:
            path: of the directory, which appears when it is complete.
            shards: what this process has.
            texts: small files of this process, by their names.
            then: called on the chief once it is in place.

        Raises:
            CheckpointError: when the chief could not make a directory, on all processes.
        """
        content = TensorFile(shards)
        pieces: Iterable[np.ndarray] = content.pieces()
        if self._buffer is not None:
            pieces = [self._buffer.fill(content.size, pieces)]
        begun = sharded_files.begin(self._strategy, path)
        cluster = self._cluster

        def complete() -> None:
            sharded_files.complete(begun, path, cluster.size)
            then()

        self._writing = _Writing(
            path,
            begun,
            partial(sharded_files.write_part, begun, cluster.rank, pieces, texts),
            partial(sharded_files.has_all_parts, begun, cluster.size),
            complete if cluster.is_chief else None,
        )

    def close(self) -> None:
        """As `finish`, and releases the host memory."""
        self.finish()
        if self._buffer is not None:
            self._buffer = HostBuffer()

    def finish(self) -> None:
        """Waits until the checkpoint that is being written, if any, is in place.

        Raises:
            CheckpointError: when some process could not write, on all of them.
        """
        writing, self._writing = self._writing, None
        if writing is None:
            return
        writing.part_done.wait()
        failure = failure_of_any(self._strategy, writing.error)
        writing.end(others_have=not failure)
        failure = failure or broadcast_error(self._strategy, writing.error)
        if failure:
            sharded_files.discard(self._strategy, writing.begun)
            raise sharded_files.not_written(writing.path, failure) from writing.error


def failure_of_any(strategy: Any, error: Exception | None) -> str:
    """The error of the first process that failed; every process must call.

    Args:
        strategy: of the processes.
        error: of this one, if any.

    Returns:
        Its type and text, with the worker's number if there are several; empty where none failed.
    """
    text = "" if error is None else error_text(error)
    cluster = getattr(strategy, "cluster", None)
    if cluster is None:
        return text
    own = np.zeros(cluster.size, np.int32)
    own[cluster.rank] = error is not None
    (failed,) = strategy.sum_over_workers([tf.constant(own)])
    if not np.any(failed):
        return ""
    first = int(np.argmax(failed))
    encoded = encode(f"worker {first}: {text}" if cluster.rank == first else "")
    (received,) = strategy.sum_over_workers([tf.constant(encoded)])
    return decode(received)


def settle(directory: str) -> None:
    """Waits for an earlier `fit` of this process that failed and is still writing.

    Args:
        directory: of the checkpoints.
    """
    for writing in [one for one in _begun if one.path.startswith(f"{directory}/")]:
        writing.end(others_have=False, wait_s=_SETTLE_S)
        if writing.error is not None:
            failure = error_text(writing.error)
            logging.warning("%s", sharded_files.not_written(writing.path, failure))


class _Writing:
    """A checkpoint, and the thread that writes it.

    Args:
        path: its final path.
        begun: where it is written until then.
        part: writes what this process has.
        has_all: whether the parts of all processes can be seen.
        complete: merges the parts; on the chief only.

    Attributes:
        part_done: set when this process's part is written, or has failed.
        error: the failure, if any.
    """

    def __init__(
        self,
        path: str,
        begun: str,
        part: Callable[[], None],
        has_all: Callable[[], bool],
        complete: Callable[[], None] | None,
    ) -> None:
        self.path, self.begun, self.part_done = path, begun, threading.Event()
        self.error: Exception | None = None
        self._part: list[Callable[[], None]] = [part]
        self._has_all, self._complete = has_all, complete
        self._ended, self._others_have = threading.Event(), False
        _begun.append(self)
        self._thread = low_priority.start(self._run, path)

    def end(self, others_have: bool, wait_s: float = 0.0) -> None:
        """Waits for the thread.

        Args:
            others_have: whether the other processes are known to have written their parts; if not,
                it does not wait for files that are missing.
            wait_s: for how long it waits for them nevertheless.
        """
        self._thread.join(wait_s)
        self._others_have = others_have
        self._ended.set()
        self._thread.join()
        _begun.remove(self)

    def _run(self) -> None:
        self.error = error_of(self._part.pop())  # which frees its memory
        self.part_done.set()
        if self._complete is not None and self.error is None:
            self.error = error_of(self._put_together)

    def _put_together(self) -> None:
        while not self._has_all():
            if self._ended.wait(_POLL_INTERVAL_S):
                if self._others_have:  # but not visible, for which `complete` raises
                    break
                return
            if not threading.main_thread().is_alive():  # and no shutdown follows
                return
        if self._complete is not None:
            self._complete()
