"""How much to send at once over the available link."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from tfaccel.distribute.collectives.communicator import Communicator

_PROBE_BYTES, _TIMES = 1 << 20, 10
_MIN_BYTES, _MAX_BYTES = 1 << 19, 1 << 24


def bucket_bytes(communicator: Communicator) -> int:
    """Measures the link, in a few milliseconds; every worker must call, and gets the same answer.

    Args:
        communicator: the workers.
    """
    if communicator.size == 1:
        return _MIN_BYTES
    none, some = (np.zeros(size // 4, np.float32) for size in (4, _PROBE_BYTES))
    latency = _min_time(lambda: communicator.sum([none]))
    rate = _PROBE_BYTES / max(_min_time(lambda: communicator.sum([some])) - latency, 1e-9)
    return int(communicator.broadcast_object(bucket_size(latency, rate)))


def bucket_size(latency_s: float, bytes_per_s: float) -> int:
    """The message size at which a tenth of the time is latency, within 512 KB and 16 MB.

    Larger ones gain little and are ready later; copying tensors to send them together costs too.
    Smaller ones lose: when a worker has one core, a compute thread yields it to MPI only every few
    milliseconds, which this probe does not see as nothing computes meanwhile.

    >>> bucket_size(50e-6, 2e9)
    1000000
    """
    return int(min(max(10 * latency_s * bytes_per_s, _MIN_BYTES), _MAX_BYTES))


def _min_time(call: Callable[[], object]) -> float:
    spent = []
    for _ in range(_TIMES):
        begun = time.perf_counter()
        call()
        spent.append(time.perf_counter() - begun)
    return min(spent)
