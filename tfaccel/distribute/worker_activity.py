"""What this process is doing: the batch, the phase, and for how long; sent to the coordinator.

Batches, traces and collectives are recorded here (a few attributes, no lock). Once per second the
failure detector's thread calls `report`, which reads from the training thread's stack whether it is
in a callback, a trace or a debugger.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from tfaccel.cluster.stalls import BUSY, COLLECTIVE, COMPILES, DATA, DEBUGGER, STEP, TRACES
from tfaccel.distribute import _private

_F = TypeVar("_F", bound=Callable[..., Any])
_USES = 0.1  # of a CPU, at least: compilation gets that even on a busy machine


class WorkerActivity:
    """The activity of the training thread; one per process.

    Attributes:
        collective_s: seconds that this process has spent in collectives that Python calls.
    """

    def __init__(self) -> None:
        self.collective_s = 0.0
        self._thread = threading.main_thread().ident or 0
        self._batches = self._collectives = 0
        self._collective: list[str] = []
        self._pass: DataPass | None = None
        self._waits_for_data = self._in_step = False
        self._explained = False  # by a trace or a callback: why no batch has come for long
        self._traced = False
        self._longest: dict[str, float] = {}
        self._seen: Any = None
        self._seen_since = self._looked_at = self._used_at = time.monotonic()
        self._processor_s = time.process_time()
        self._in_mpi: list[None] = []

    def trace(self) -> None:
        """Marks that the step is being traced, then compiled."""
        self._traced = True

    def collective(self, function: _F) -> _F:
        """Decorates a function in which this process waits for the others."""

        @functools.wraps(function)
        def noted(*args: Any, **kwargs: Any) -> Any:
            self._collectives += 1
            self._collective.append(function.__name__)
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._collective.pop()
                if not self._collective:
                    self.collective_s += time.perf_counter() - began

        return noted  # type: ignore[return-value]

    def in_mpi(self, function: _F) -> _F:
        """Decorates a function in which MPI waits for the others, which uses a CPU."""

        @functools.wraps(function)
        def noted(*args: Any, **kwargs: Any) -> Any:
            self._in_mpi.append(None)
            try:
                return function(*args, **kwargs)
            finally:
                self._in_mpi.pop()

        return noted  # type: ignore[return-value]

    def report(self) -> dict[str, Any]:
        """The fields of `tfaccel.cluster.stalls.WorkerStatus`."""
        state, place, kind = self._state()
        if state in (BUSY, DEBUGGER):
            self._explained = True
        now = time.monotonic()
        seen = self._batches, self._collectives, self._waits_for_data, state, place
        if seen != self._seen:
            self._seen, self._seen_since = seen, now
        longest = self._longest.get(kind, 0.0) if kind else max(self._longest.values(), default=0.0)
        return {
            "state": state,
            "place": place,
            "batches": self._batches,
            "since_s": round(now - self._seen_since, 3),
            "longest_s": round(longest, 3),
            "unused_s": round(self._unused_s(now), 3),
        }

    def _unused_s(self, now: float) -> float:
        """How long the process has used no CPU time, as far as measured."""
        used = time.process_time()
        share = (used - self._processor_s) / max(now - self._looked_at, 1e-3)
        if share > _USES and not self._in_mpi:
            self._used_at = now
        self._looked_at, self._processor_s = now, used
        return now - self._used_at

    def _state(self) -> tuple[str, str, str]:
        """The state, the place in words, and the kind of durations to compare it with."""
        activity = _private.activity(self._thread)
        where = activity.where
        if activity.debugger:
            return DEBUGGER, f"in a debugger{where}", ""
        collective = next(iter(self._collective), "")
        if collective:
            inside = f" in {activity.callback}" if activity.callback else ""
            return COLLECTIVE, f"in a collective ({collective}){inside}{where}", ""
        if self._waits_for_data and self._pass is not None:
            return DATA, f"waiting for data{where}", self._pass.kind
        if activity.callback:
            return BUSY, f"in {activity.callback}{where}", ""
        if not activity.method:
            return BUSY, "outside of fit, evaluate and predict", ""
        if activity.traces:
            return TRACES, f"tracing{where}", ""
        if not self._in_step or self._pass is None:
            return BUSY, f"between two passes over data{where}", ""
        if self._traced:
            return COMPILES, f"compiling{where}", ""
        return STEP, f"in a step{where}", self._pass.kind


class DataPass:
    """One pass over batches.

    Args:
        of: where it is recorded.
    """

    def __init__(self, of: WorkerActivity) -> None:
        self._of = of
        self._method = _private.training_method()
        self._batches = 0
        self._began = time.monotonic()  # waiting for the first batch, or the step of one

    @property
    def kind(self) -> str:
        """The kind of durations comparable with the current wait."""
        return self._method if self._batches else f"the first batch of {self._method}"

    def wait_for_batch(self) -> None:
        """The next batch is requested."""
        of = self._of
        of._thread = threading.get_ident()
        if of._pass is not self:  # another one was between this batch and the last
            of._pass, of._explained = self, True
        if not self._batches:
            self._began, of._explained, of._traced = time.monotonic(), False, False
        of._waits_for_data = True

    def begin_batch(self) -> None:
        """The batch has arrived and its step begins; the time since the last one was its step's."""
        of, now = self._of, time.monotonic()
        if not (of._explained or of._traced):
            of._longest[self.kind] = max(of._longest.get(self.kind, 0.0), now - self._began)
        self._began = now
        self._batches += 1
        of._batches += 1
        of._waits_for_data, of._in_step = False, True
        of._explained = of._traced = False

    def end(self) -> None:
        """There is no further batch."""
        self._of._waits_for_data = self._of._in_step = self._of._traced = False


worker_activity = WorkerActivity()
"""Of this process."""
