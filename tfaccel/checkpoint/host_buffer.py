"""Host memory into which the state is captured, kept from one checkpoint to the next.

Copying 1 GB into it takes 0.1 s. Into fresh memory it takes ten times as long, since the kernel
clears each page on first use.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tfaccel.checkpoint import low_priority

_THREADS = min(4, os.cpu_count() or 1)
_CHUNK = 1 << 20  # bytes, which is worth a thread


class HostBuffer:
    """The content of one file, in memory that the next content uses again."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)
        self._reserving: threading.Thread | None = None

    def reserve(self, size: int) -> None:
        """Allocates memory for a content of this many bytes, in the background."""

        def allocate() -> None:
            self._memory = _pages(size)
            self._memory.fill(0)

        self._reserving = low_priority.start(allocate, "memory of checkpoints")

    def fill(self, size: int, pieces: Iterable[np.ndarray]) -> np.ndarray:
        """Copies a content, which does not change while training continues.

        It is made here, though TensorFlow would update a variable in a copy while a value read
        from it is in use: one by one, as the operations of the next step need them, those copies
        took five times as long (2.21, on CPUs).

        Args:
            size: in bytes.
            pieces: the bytes, in order.

        Returns:
            The copy, aligned to pages and valid until the next call.
        """
        if self._reserving is not None:
            self._reserving.join()
            self._reserving = None
        if self._memory.size < size:
            self._memory = np.empty(0, np.uint8)  # before there is more
            self._memory = _pages(size)
        place = 0
        with ThreadPoolExecutor(_THREADS) as pool:
            for piece in pieces:  # one by one: those of a GPU are in memory of their own
                _copy(pool, self._memory[place : place + piece.size], piece)
                place += piece.size
        return self._memory[:place]


def _copy(pool: ThreadPoolExecutor, to: np.ndarray, values: np.ndarray) -> None:
    """Copies with several threads, of which one alone does not use the memory's bandwidth."""
    if values.size <= _CHUNK:
        np.copyto(to, values)
        return
    step = max(_CHUNK, -(-values.size // _THREADS))
    parts = [slice(start, start + step) for start in range(0, values.size, step)]
    for _ in pool.map(lambda part: np.copyto(to[part], values[part]), parts):
        pass


def _pages(size: int) -> np.ndarray:
    """Memory of its own pages, large ones where the system has them."""
    memory = mmap.mmap(-1, max(size, 1))
    with contextlib.suppress(AttributeError, OSError):  # not on every system
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)
