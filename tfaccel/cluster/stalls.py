"""Which worker holds up a job: decided from heartbeats, about one per second.

Workers that train together wait for each other in every step, so one that stops stops all, and a
collective does not report which one it was. A job stalls when no worker has made progress for
longer than three times the longest step seen, and longer than a floor. A worker that is not waiting
for the others is then at fault; if all wait, they have called different collectives.

Operations that may legitimately take long are not ended: compiling, validation (its batches count
as steps), a callback, code between two calls of `fit`, the first batch of a pass over the data when
no earlier one shows how long that takes. They are reported once the others have waited that long.
Compiling uses CPU time, though: where no worker has used any for three times as long, none is
compiling. A worker without heartbeats is stopped, or a call holds the GIL: it ends the job when
that stalls, or after three times as long where the worker was last seen in what may take long.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

STEP, COLLECTIVE, DATA, BUSY, TRACES, COMPILES, DEBUGGER = (
    *("step", "collective", "data", "busy"),
    *("traces", "compiles", "debugger"),
)
WAITS = (STEP, COLLECTIVE)
_BEGINS = (TRACES, COMPILES)
_TIMES_LONGEST = 3.0
_TIMES_UNCERTAIN = 3.0  # where it may compile, or a call may hold the GIL
SILENT_S = 6.0
_DEADLOCK = "deadlock: workers are waiting for each other (possible collective mismatch)"


@dataclass(frozen=True)
class WorkerStatus:
    """The status of a worker, sent with its heartbeat.

    Attributes:
        state: `STEP` or `COLLECTIVE`, in which a worker may wait for the others; `DATA`, waiting
            for a batch; `TRACES`, Python traces a step; `COMPILES`, until its first execution is
            done; `DEBUGGER`; or `BUSY`.
        place: the same in words, such as ``"in batch 7 of epoch 2"``.
        batches: how many it has begun in all.
        since_s: for how long that has not changed.
        longest_s: the longest time that such a state has taken in this worker; 0 when none has
            ended.
        unused_s: for how long the process has used almost no CPU time, or waited in MPI, which
            does.
    """

    state: str = BUSY
    place: str = ""
    batches: int = 0
    since_s: float = 0.0
    longest_s: float = 0.0
    unused_s: float = 0.0

    @classmethod
    def parse(cls, text: str) -> WorkerStatus | None:
        """Parses a status; None when it is not one.

        >>> WorkerStatus.parse('{"state": "data", "batches": 3}').state
        'data'
        """
        try:
            fields = json.loads(text)
            return cls(
                str(fields["state"]),
                str(fields.get("place", "")),
                int(fields.get("batches", 0)),
                float(fields.get("since_s", 0.0)),
                float(fields.get("longest_s", 0.0)),
                float(fields.get("unused_s", 0.0)),
            )
        except (ValueError, TypeError, KeyError, AttributeError):
            return None


@dataclass(frozen=True)
class Finding:
    """One or more workers that the others wait for.

    Attributes:
        ranks: of those workers.
        why: what is known of them, with `{N}` for the name of rank N.
        ends: whether it ends the job.
        silent: whether they send no heartbeat.
        stacks: whether every worker is to print its Python stack.
    """

    ranks: tuple[int, ...]
    why: str
    ends: bool
    silent: bool = False
    stacks: bool = False


@dataclass
class _Worker:
    report: WorkerStatus
    heard_at: float
    silence_reported: bool = False

    def idle_s(self, now: float) -> float:
        return self.report.since_s + now - self.heard_at

    def silent_s(self, now: float) -> float:
        return now - self.heard_at

    def is_silent(self, now: float) -> bool:
        return self.silent_s(now) > SILENT_S

    def unused_s(self, now: float) -> float:
        return self.report.unused_s + self.silent_s(now)

    def is_stuck(self, now: float, limit_s: float, batches: int, all_idle: bool) -> bool:
        """Whether it holds up the others without a legitimately long operation.

        Args:
            now: the time.
            limit_s: how long the job may go without progress.
            batches: of the worker that has begun the most; one that is two behind has done more
                since its last heartbeat.
            all_idle: whether no worker uses CPU time.
        """
        state, known = self.report.state, self.report.longest_s > 0
        if self.is_silent(now) and state != DEBUGGER:
            is_certain = state in (STEP, COLLECTIVE, DATA) or self.report.batches + 1 < batches
            return is_certain or self.silent_s(now) > _TIMES_UNCERTAIN * limit_s
        return (state == DATA and known) or (state == TRACES and all_idle)

    def waits(self, all_idle: bool) -> bool:
        """Whether it can only wait for the others."""
        state, known = self.report.state, self.report.longest_s > 0
        return (state in WAITS and known) or (state in (*WAITS, *_BEGINS) and all_idle)


@dataclass
class StallWatch:
    """Listens to `size` workers.

    Attributes:
        size: the number of workers.
        floor_s: the shortest time without progress that counts as a stall, in seconds; 0 to
            disable.
    """

    size: int
    floor_s: float
    _workers: dict[int, _Worker] = field(default_factory=dict)
    _reported_idle_s: float = 0.0
    _began_at: float = float("-inf")
    _ended: set[int] = field(default_factory=set)

    def record_status(self, rank: int, report: WorkerStatus, now: float) -> None:
        """Records a heartbeat."""
        self._workers[rank] = _Worker(report, now)

    def end(self, rank: int) -> None:
        """Notes that a worker has ended regularly."""
        self._ended.add(rank)
        self._workers.pop(rank, None)

    def forget(self, rank: int) -> None:
        """Notes that a worker was lost."""
        self._workers.pop(rank, None)

    def reset_clock(self, now: float) -> None:
        """Restarts all timing from now, after the machine was suspended."""
        self._began_at = now
        for one in self._workers.values():
            one.heard_at = now

    def place(self, rank: int) -> str:
        """What a worker was doing at its last heartbeat."""
        return self._workers[rank].report.place if rank in self._workers else ""

    def find(self, now: float) -> Iterator[Finding]:
        """The stalls to report, each once.

        Args:
            now: in seconds of the clock of `record_status`.
        """
        yield from self._newly_silent(now)
        if not self.floor_s or len(self._workers) + len(self._ended) < self.size:
            return
        if not self._workers:
            return
        workers = self._workers
        longest = max(one.report.longest_s for one in workers.values())
        limit = max(self.floor_s, _TIMES_LONGEST * longest)
        idle = min(now - self._began_at, *(one.idle_s(now) for one in workers.values()))
        if idle <= limit:
            self._reported_idle_s = 0.0
            return
        setting = f"longer than stall_timeout={self.floor_s:g} and three times the longest step"
        setting += f" ({longest:.1f} s)"
        most_batches = max(one.report.batches for one in workers.values())
        unused = min(idle, *(one.unused_s(now) for one in workers.values()))
        all_idle = unused > _TIMES_UNCERTAIN * limit
        stuck = tuple(
            r for r, one in workers.items() if one.is_stuck(now, limit, most_batches, all_idle)
        )
        if stuck and len(stuck) < max(2, len(workers)):
            yield Finding(
                stuck, f"{self._places(stuck, now)}, {setting}{self._waiting_workers(stuck)}", True
            )
        elif all(one.waits(all_idle) for one in workers.values()):
            fewest = min(one.report.batches for one in workers.values())
            behind = tuple(r for r, one in workers.items() if one.report.batches == fewest)
            everyone = tuple(workers)
            if any(one.report.state in _BEGINS for one in workers.values()):
                setting = f"three times {setting}, and no processor was used meanwhile"
            why = f"{self._places(everyone, now)}, {setting}; {_DEADLOCK}"
            yield Finding(behind, f"{why}{self._end_of_others()}", True)
        else:
            yield from self._slow(stuck, now, idle, limit)

    def _newly_silent(self, now: float) -> Iterator[Finding]:
        for rank, one in self._workers.items():
            if one.is_silent(now) and not one.silence_reported and one.report.state != DEBUGGER:
                one.silence_reported = True
                silent = f"{{{rank}}} has sent no heartbeat for {now - one.heard_at:.0f} s"
                why = f"it was {one.report.place}: it is stopped, or a call holds the GIL"
                yield Finding((rank,), f"{silent}; {why}", False, silent=True)

    def _slow(
        self, stuck: tuple[int, ...], now: float, idle: float, limit: float
    ) -> Iterator[Finding]:
        """Long operations that others wait for: reported again when they took twice as long."""
        workers = self._workers
        explained = (*_BEGINS, DEBUGGER)
        if not stuck and any(one.report.state in explained for one in workers.values()):
            return
        slow = stuck or tuple(r for r, one in workers.items() if one.report.state not in WAITS)
        waits = len(slow) < len(workers) or bool(stuck)
        if slow and waits and idle > max(limit, 2 * self._reported_idle_s):
            # All wait for data: the stacks tell for what. Once, as the line is repeated.
            stacks = bool(stuck) and not self._reported_idle_s
            self._reported_idle_s = idle
            why = f"{self._places(slow, now)}{self._waiting_workers(slow)}"
            yield Finding(slow, why, False, stacks=stacks)

    def _places(self, ranks: tuple[int, ...], now: float) -> str:
        return ", ".join(self._place(rank, now) for rank in sorted(ranks))

    def _place(self, rank: int, now: float) -> str:
        worker = self._workers[rank]
        place, idle = worker.report.place, f"for {worker.idle_s(now):.0f} s"
        if worker.is_silent(now):
            return f"{{{rank}}} is not responding; last seen {place}, no progress {idle}"
        return f"{{{rank}}} has been {place} {idle}"

    def _waiting_workers(self, ranks: tuple[int, ...]) -> str:
        others = [r for r in sorted(self._workers) if r not in ranks]
        if not others:
            return ""
        first = others[0]
        who = f"and {len(others) - 1} more wait" if len(others) > 1 else "waits"
        return f"; {{{first}}} {who}, {self._workers[first].report.place}"

    def _end_of_others(self) -> str:
        ended = ", ".join(f"{{{rank}}}" for rank in sorted(self._ended))
        have = "have" if len(self._ended) > 1 else "has"
        return f"; {ended} {have} ended" if ended else ""


def named(text: str, names: Mapping[int, str] | list[str]) -> str:
    """A text with the names of workers in place of their ranks.

    >>> named("{1} waits", ["worker 0", "worker 1"])
    'worker 1 waits'
    """
    pairs: list[tuple[int, Any]] = list(
        names.items() if isinstance(names, Mapping) else enumerate(names)
    )
    for rank, name in pairs:
        text = text.replace(f"{{{rank}}}", str(name))
    return text
