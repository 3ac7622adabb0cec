"""The workers of one job on this machine, from their first line to their common end."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, TextIO, TypeAlias

from tfaccel.errors import LaunchError
from tfaccel.exit_codes import PREEMPTED
from tfaccel.launch.failure import SAME_MOMENT_S, Exit, first_failure, summary
from tfaccel.launch.output import OutputForwarder, Terminal
from tfaccel.launch.process import Worker

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_OUTPUT_S = 2.0


def supervise(
    command: Sequence[str],
    environments: Sequence[Mapping[str, str]],
    *,
    log_dir: str | os.PathLike[str] | None,
    grace_s: float,
) -> JobResult:
    """Runs one command in each of these environments; all end together.

    Args:
        command: program and arguments.
        environments: each worker's whole environment, in rank order.
        log_dir: a directory for `rank-N.log`, or None.
        grace_s: how long a worker that was asked to stop may take, in seconds.

    Returns:
        How the job ended.
    """
    with contextlib.ExitStack() as stack:
        return _Job(stack, command, environments, log_dir, grace_s).wait()


@dataclass(frozen=True)
class JobResult:
    """How a job ended.

    Attributes:
        code: its exit code, as `tfaccel.launch.local.run` describes it.
        signalled: whether somebody stopped it with a signal to this launcher.
    """

    code: int
    signalled: bool = False


@dataclass(frozen=True)
class _WorkerExit:
    """A worker's process has ended, at this time."""

    worker: Worker
    at: float


_Events: TypeAlias = "queue.SimpleQueue[_WorkerExit | signal.Signals]"


class _Job:
    """The workers of one run. All that happens to them arrives in one queue, in order."""

    def __init__(
        self,
        stack: contextlib.ExitStack,
        command: Sequence[str],
        environments: Sequence[Mapping[str, str]],
        log_dir: str | os.PathLike[str] | None,
        grace_s: float,
    ) -> None:
        self._grace_s = grace_s
        # A SimpleQueue, because a signal handler may put to it at any moment.
        self._events: _Events = queue.SimpleQueue()
        self._exits: list[Exit] = []
        self._running: set[Worker] = set()
        self._stopped_at: float | None = None
        self._kill_at: float | None = None
        self._killed = False
        self._signal: signal.Signals | None = None

        stack.enter_context(_signals_to(self._events))
        logs = [_open_log(stack, log_dir, rank) for rank in range(len(environments))]
        self._screens = (_terminal(sys.stdout), _terminal(sys.stderr))
        self._workers: list[Worker] = []
        self._pumps: list[tuple[OutputForwarder, ...]] = []
        stack.callback(self._end_all)
        for rank, environment in enumerate(environments):
            self._workers.append(Worker(command, rank, environment))
        self._pumps = [
            tuple(
                OutputForwarder(pipe, worker.rank, screen, log)
                for pipe, screen in zip((worker.stdout, worker.stderr), self._screens, strict=True)
                if pipe is not None
            )
            for worker, log in zip(self._workers, logs, strict=True)
        ]
        for pump in (pump for pair in self._pumps for pump in pair):
            pump.start()
        for worker in self._workers:
            self._running.add(worker)
            threading.Thread(target=self._watch, args=(worker,), daemon=True).start()

    def wait(self) -> JobResult:
        """Waits for all workers; stops them at the first failure or signal."""
        stop_at: float | None = None
        while self._running:
            event = self._next(stop_at)
            if isinstance(event, _WorkerExit):
                ended = self._ended(event)
                if ended.failed and not ended.lost_peer:
                    stop_at = ended.at
                elif ended.failed and stop_at is None:
                    # The worker that this one misses may be about to say what it died of.
                    stop_at = ended.at + SAME_MOMENT_S
            elif event is not None:
                self._signalled(event)
            now = time.monotonic()
            if self._stopped_at is None and stop_at is not None and now >= stop_at:
                self._stop(signal.SIGTERM)
            if self._kill_at is not None and now >= self._kill_at and not self._killed:
                self._killed = True
                self._send(signal.SIGKILL)
        return self._verdict()

    def _watch(self, worker: Worker) -> None:
        worker.await_end()
        self._events.put(_WorkerExit(worker, time.monotonic()))

    def _next(self, stop_at: float | None) -> _WorkerExit | signal.Signals | None:
        """The next event, or None when it is time to stop or kill the workers."""
        if self._stopped_at is not None:
            stop_at = None if self._killed else self._kill_at
        try:
            left = None if stop_at is None else max(0.0, stop_at - time.monotonic())
            return self._events.get(timeout=left)
        except queue.Empty:
            return None

    def _ended(self, event: _WorkerExit) -> Exit:
        worker = event.worker
        self._running.discard(worker)
        status = worker.reap()
        stopped = self._stopped_at is not None and event.at >= self._stopped_at
        errors = self._pumps[worker.rank][-1]
        if status and not stopped:  # Its last words may still be on their way.
            errors.join(_OUTPUT_S)
        ended = Exit(worker.rank, worker.pid, status, event.at, errors.last_lines, stopped)
        self._exits.append(ended)
        return ended

    def _signalled(self, number: signal.Signals) -> None:
        if self._stopped_at is None:
            self._signal = number
            self._stop(number)
        elif number == signal.SIGINT:  # The second Ctrl-C: the grace is over.
            self._kill_at = time.monotonic()

    def _stop(self, number: int) -> None:
        self._stopped_at = time.monotonic()
        self._kill_at = self._stopped_at + self._grace_s
        self._send(number)

    def _send(self, number: int) -> None:
        for worker in self._workers:
            worker.send(number)

    def _verdict(self) -> JobResult:
        self._end_all()
        if self._signal:
            log_message(f"stopped all {len(self._workers)} workers after {self._signal.name}")
            saved = any(one.status == PREEMPTED for one in self._exits) and all(
                one.status in (0, PREEMPTED) for one in self._exits
            )
            return JobResult(PREEMPTED if saved else 128 + self._signal, signalled=True)
        cause = first_failure(self._exits)
        if cause is None:
            return JobResult(0)
        log_message(summary(cause, self._exits))
        return JobResult(cause.code)

    def _end_all(self) -> None:
        """Leaves no process behind, whatever happened, and no output unread."""
        deadline = self._kill_at or time.monotonic() + self._grace_s
        while any(worker.send(0) for worker in self._workers) and (
            not self._running and time.monotonic() < deadline
        ):
            time.sleep(0.02)
        for worker in self._workers:
            worker.close()
        for pump in (pump for pair in self._pumps for pump in pair):
            pump.join(_OUTPUT_S)
        for screen in self._screens:
            screen.close()


@contextlib.contextmanager
def _signals_to(events: _Events) -> Iterator[None]:
    """Puts signals into the queue instead of ending this process."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Only the main thread gets signals, and may request them.
        return

    def put(number: int, _: FrameType | None) -> None:
        events.put(signal.Signals(number))

    # Under nohup a lost terminal is no reason to stop.
    handled = [
        number
        for number in _FORWARDED
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
    ]
    before = {number: signal.signal(number, put) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _open_log(
    stack: contextlib.ExitStack, log_dir: str | os.PathLike[str] | None, rank: int
) -> IO[bytes] | None:
    if log_dir is None:
        return None
    try:
        Path(log_dir).mkdir(parents=True, exist_ok=True)
        return stack.enter_context(open(Path(log_dir, f"rank-{rank}.log"), "wb"))
    except OSError as error:
        raise LaunchError(
            f"cannot write logs to {os.fspath(log_dir)!r} ({error.strerror}); "
            "expected a directory that can be written to"
        ) from error


def _terminal(stream: TextIO) -> Terminal:
    from rich.console import Console

    console = Console(file=stream)
    colour = console.color_system is not None and not console.no_color
    return Terminal(
        stream, terminal=stream.isatty() and not console.is_dumb_terminal, colour=colour
    )


def log_message(text: str) -> None:
    """Says something about the job on stderr, its first line so that nobody misses it."""
    from rich.console import Console

    first, _, rest = text.partition("\n")
    console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    console.print(f"tfaccel launch: {first}", style="bold red")
    if rest:
        console.print(rest)
