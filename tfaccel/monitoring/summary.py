"""The windows of each worker, summed."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tfaccel.monitoring.window import Window, rate, share


@dataclass(frozen=True)
class WorkerSummary:
    """One worker over several windows.

    Attributes:
        worker: its rank.
        steps: in all windows.
        seconds: of all windows; the other times are parts of it, as in `Window`.
    """

    worker: int
    steps: int
    seconds: float
    input_s: float | None
    compute_s: float | None
    communication_s: float | None
    host_s: float | None
    examples_per_second: float | None
    tokens_per_second: float | None
    peak_memory: float | None
    peak_device_memory: float | None
    mfu: float | None
    monitor_s: float = 0.0

    @property
    def step_s(self) -> float:
        """Seconds of one step."""
        return self.seconds / self.steps if self.steps else 0.0

    @property
    def own_step_s(self) -> float | None:
        """Of them, those in which it does not wait for others; None if unknown."""
        if self.communication_s is None or not self.steps:
            return None
        return (self.seconds - self.communication_s) / self.steps

    def share(self, part: str) -> float | None:
        """A part of its steps: ``"input"``, ``"compute"``, ``"communication"``, ``"host"``."""
        return share(getattr(self, f"{part}_s"), self.seconds)


PARTS = ("input", "compute", "communication", "host")


def steady(windows: Iterable[Window]) -> list[Window]:
    """The windows in which nothing was compiled; all where there are no others."""
    windows = list(windows)
    return [w for w in windows if w.steady] or windows


def summarize(windows: Iterable[Window]) -> tuple[WorkerSummary, ...]:
    """Sums the windows of each worker, by rank.

    Args:
        windows: of one run; those that compile count only where there are no others.
    """
    chosen = steady(windows)
    ranks = sorted({w.worker for w in chosen})
    return tuple(_of_worker([w for w in chosen if w.worker == rank]) for rank in ranks)


def _of_worker(windows: Sequence[Window]) -> WorkerSummary:
    seconds = sum(w.seconds for w in windows)
    steps = sum(w.steps for w in windows)
    flops, peak = windows[-1].flops, windows[-1].peak_flops
    used = flops * steps / seconds / peak if flops is not None and peak and seconds else None
    return WorkerSummary(
        worker=windows[0].worker,
        steps=steps,
        seconds=seconds,
        input_s=_total([w.input_s for w in windows]),
        compute_s=_total([w.compute_s for w in windows]),
        communication_s=_total([w.communication_s for w in windows]),
        host_s=_total([w.host_s for w in windows]),
        examples_per_second=rate(_total([w.examples for w in windows]), seconds),
        tokens_per_second=rate(_total([w.tokens for w in windows]), seconds),
        peak_memory=_most([w.peak_memory for w in windows]),
        peak_device_memory=_most([w.peak_device_memory for w in windows]),
        mfu=used,
        monitor_s=sum(w.monitor_s for w in windows),
    )


def _total(values: Sequence[float | None]) -> float | None:
    """The sum; None if one is unknown.

    >>> _total([1.0, 2.0]), _total([1.0, None])
    (3.0, None)
    """
    known = [v for v in values if v is not None]
    return sum(known) if len(known) == len(values) else None


def _most(values: Sequence[float | None]) -> float | None:
    return max((v for v in values if v is not None), default=None)


@dataclass(frozen=True)
class Slowest:
    """The workers for which the others wait.

    Attributes:
        workers: their ranks, in order.
        worker: the rank of the slowest.
        own_s: its own time for a step, in seconds.
        others_s: the median of the others' times.
    """

    workers: tuple[int, ...]
    worker: int
    own_s: float
    others_s: float

    @property
    def lag_s(self) -> float:
        """How much slower it is, in seconds per step."""
        return self.own_s - self.others_s


def slowest(summaries: Sequence[WorkerSummary]) -> Slowest | None:
    """The slowest of several workers; None for one, or if their own times are unknown.

    Several are slow together where two share a core. They are those above the widest gap.
    """
    own = {s.worker: s.own_step_s for s in summaries}
    known = {rank: seconds for rank, seconds in own.items() if seconds is not None}
    if len(known) < 2 or len(known) < len(own):
        return None
    ranks = sorted(known, key=lambda rank: known[rank])
    gaps = [known[slower] - known[faster] for faster, slower in itertools.pairwise(ranks)]
    first = len(gaps) - gaps[::-1].index(max(gaps))  # of equal gaps, the one of fewer slow ones
    others = statistics.median(known[rank] for rank in ranks[:first])
    return Slowest(tuple(sorted(ranks[first:])), ranks[-1], known[ranks[-1]], others)
