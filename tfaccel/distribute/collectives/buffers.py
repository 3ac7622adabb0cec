"""Memory that messages are sent in, reused as soon as it is no longer referenced."""

from __future__ import annotations

import sys

import numpy as np

_ALIGNED = 64  # bytes; TensorFlow uses an array so aligned without a copy


class Buffers:
    """Hands out memory, and reclaims it when its last view is gone.

    Fresh memory of some megabytes costs as much as sending it: the kernel zeroes every page.
    """

    def __init__(self) -> None:
        self._buffers: dict[int, list[np.ndarray]] = {}

    def take(self, size: int) -> np.ndarray:
        """`size` bytes, aligned for TensorFlow, of any content.

        Args:
            size: bytes.
        """
        candidates = self._buffers.setdefault(size, [])
        for i in range(len(candidates)):
            if sys.getrefcount(candidates[i]) == _UNUSED:
                return _aligned(candidates[i], size)
        candidates.append(np.zeros(size + _ALIGNED, np.uint8))
        return _aligned(candidates[-1], size)


def _aligned(raw: np.ndarray, size: int) -> np.ndarray:
    start = -raw.ctypes.data % _ALIGNED
    return raw[start : start + size]


def _count() -> int:
    """The reference count of an array in a list that holds the only reference."""
    held = [np.empty(1, np.uint8)]
    return sys.getrefcount(held[0])


_UNUSED = _count()


def spans(sizes: list[int]) -> list[int]:
    """Where each of several parts starts in one buffer, aligned, and where the last ends.

    Args:
        sizes: bytes of each part.

    >>> spans([4, 100, 8])
    [0, 64, 192, 200]
    """
    starts, at = [], 0
    for size in sizes:
        at = -(-at // _ALIGNED) * _ALIGNED
        starts.append(at)
        at += size
    return [*starts, at]
