"""Which tensors are sent together, and in which memory."""

from __future__ import annotations

import numpy as np
import pytest

from tfaccel.distribute.collectives.buckets import plan
from tfaccel.distribute.collectives.buffers import Buffers, spans
from tfaccel.distribute.collectives.tuning import bucket_size


@pytest.mark.parametrize(
    ("sizes", "kinds", "messages"),
    [
        ([], "", []),
        ([4], "f", [[0]]),
        ([4, 4, 2], "fff", [[2, 1, 0]]),
        ([4, 4, 4], "fif", [[2], [1], [0]]),
        ([8, 8, 8], "fff", [[2], [1], [0]]),  # two would be more than 10
        ([2, 10, 2, 2], "ffff", [[3, 2], [1], [0]]),  # a large one is sent alone
        ([99, 1, 99], "fff", [[2], [1], [0]]),
    ],
)
def test_plan(sizes: list[int], kinds: str, messages: list[list[int]]) -> None:
    assert plan(sizes, list(kinds), limit=10) == messages


@pytest.mark.parametrize(
    ("latency", "rate", "size"), [(1e-4, 1e9, 1_000_000), (1e-6, 1e6, 1 << 19), (1, 1e9, 1 << 24)]
)
def test_a_message_is_as_large_as_its_link_makes_worth(
    latency: float, rate: float, size: int
) -> None:
    assert bucket_size(latency, rate) == size


def test_memory_is_reused_when_no_reference_is_left() -> None:
    buffers = Buffers()
    first = buffers.take(1000).view(np.float32)
    address = first.ctypes.data
    assert address % 64 == 0
    other = buffers.take(1000)
    assert other.ctypes.data != address, "somebody looks at the first one"
    part = first[10:20].reshape(2, 5)
    del first
    assert buffers.take(1000).ctypes.data not in (address, other.ctypes.data), "at a part of it"
    del part
    assert buffers.take(1000).ctypes.data == address


def test_parts_of_one_message_do_not_overlap_and_are_aligned() -> None:
    *starts, end = spans([4, 65, 0, 128])
    assert starts == [0, 64, 192, 192]
    assert end == 320
