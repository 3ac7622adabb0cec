"""What a trial measures: memory that is free again when a step begins is not the step's."""

from __future__ import annotations

import ctypes

from tfaccel.planner import trial

SMALL, MANY = 16 << 10, 4000  # 64 MB, in blocks that malloc keeps when they are freed


def test_a_peak_begins_without_free_memory() -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    blocks = [libc.malloc(SMALL) for _ in range(MANY)]
    for block in blocks:
        ctypes.memset(block, 1, SMALL)
    for block in blocks[:-1]:  # the last one keeps them from being given back
        libc.free(ctypes.c_void_p(block))
    trial.reset_peak()
    assert trial.peak() - trial.resident() < MANY * SMALL / 4
    libc.free(ctypes.c_void_p(blocks[-1]))
