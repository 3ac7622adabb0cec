"""The workers of one job on this machine, from start to end."""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TextIO, TypeAlias

from tfaccel import signals
from tfaccel.errors import LaunchError
from tfaccel.exit_codes import PREEMPTED
from tfaccel.launch import startup_messages
from tfaccel.launch.console import Console
from tfaccel.launch.failure import SAME_MOMENT_S, Exit, first_failure, summary
from tfaccel.launch.output import OutputForwarder, Terminal
from tfaccel.launch.process import Worker
from tfaccel.launch.show import Shown

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_OUTPUT_S = 2.0
_LAST_WORDS_S = 1.0


def supervise(
    command: Sequence[str],
    environments: Sequence[Mapping[str, str]],
    *,
    log_dir: str | os.PathLike[str] | None,
    grace_s: float,
    shown: Shown,
) -> JobResult:
    """Runs one command in each of these environments; all end together.

    Args:
        command: program and arguments.
        environments: each worker's whole environment, in rank order.
        log_dir: a directory for `rank-N.log`, or None.
        grace_s: how long a worker may take to stop, in seconds.
        shown: whose output is.

    Returns:
        How the job ended.
    """
    with contextlib.ExitStack() as stack:
        return _Job(stack, command, environments, log_dir, grace_s, shown).wait()


@dataclass(frozen=True)
class JobResult:
    """How a job ended.

    Attributes:
        code: its exit code, as `tfaccel.launch.local.run` describes it.
        signalled: whether it was stopped by a signal to this launcher.
        exits: how its workers ended, in the order observed.
    """

    code: int
    signalled: bool = False
    exits: tuple[Exit, ...] = ()


@dataclass(frozen=True)
class _WorkerExit:
    """A worker's process ended at this time."""

    worker: Worker
    at: float


_Events: TypeAlias = "queue.SimpleQueue[_WorkerExit | signal.Signals]"


class _Job:
    """The workers of one run. All their events arrive in one queue, in order."""

    def __init__(
        self,
        stack: contextlib.ExitStack,
        command: Sequence[str],
        environments: Sequence[Mapping[str, str]],
        log_dir: str | os.PathLike[str] | None,
        grace_s: float,
        shown: Shown,
    ) -> None:
        self._grace_s = grace_s
        self._shown = shown
        self._log_dir = log_dir
        self._events: _Events = queue.SimpleQueue()
        self._exits: list[Exit] = []
        self._running: set[Worker] = set()
        self._stopped_at: float | None = None
        self._kill_at: float | None = None
        self._killed = False
        self._signal: signal.Signals | None = None

        stack.enter_context(signals.received(_handled(), self._events.put))
        logs = [_open_log(stack, log_dir, rank) for rank in range(len(environments))]
        self._console = Console(shown, _terminal(sys.stdout), _terminal(sys.stderr))
        self._workers: list[Worker] = []
        self._pumps: list[tuple[OutputForwarder, ...]] = []
        stack.callback(self._end_all)
        for rank, environment in enumerate(environments):
            self._workers.append(Worker(command, rank, environment))
        self._pumps = [
            tuple(
                OutputForwarder(
                    pipe,
                    f"{worker.rank}-{stream}",
                    functools.partial(self._console.show, worker.rank, stream),
                    log,
                    show_startup=shown.ranks is None or startup_messages.is_level_set(environment),
                )
                for stream, pipe in enumerate((worker.stdout, worker.stderr))
                if pipe is not None
            )
            for worker, log, environment in zip(self._workers, logs, environments, strict=True)
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
                if ended.failed and ended.status < 0:
                    # It cannot report what it was doing, but the others may.
                    stop_at = ended.at + _LAST_WORDS_S
                elif ended.failed and not ended.lost_peer:
                    stop_at = ended.at
                elif ended.failed and stop_at is None:
                    # The lost peer may be about to report why it died.
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
        output, errors = self._pumps[worker.rank]
        if status and not stopped:  # Its last output may still be in the pipe.
            errors.join(_OUTPUT_S)
        hidden = () if worker.rank in self._shown else output.last_lines
        ended = Exit(worker.rank, worker.pid, status, event.at, errors.last_lines, stopped, hidden)
        self._exits.append(ended)
        return ended

    def _signalled(self, number: signal.Signals) -> None:
        if self._stopped_at is None:
            self._signal = number
            self._stop(number)
        elif number == signal.SIGINT:  # The second Ctrl-C ends the grace period.
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
        log_message(summary(cause, self._exits, _log_file(self._log_dir, cause.rank)))
        return JobResult(cause.code, exits=tuple(self._exits))

    def _end_all(self) -> None:
        """Leaves no process behind and no output unread, whatever happened."""
        deadline = self._kill_at or time.monotonic() + self._grace_s
        while any(worker.send(0) for worker in self._workers) and (
            not self._running and time.monotonic() < deadline
        ):
            time.sleep(0.02)
        for worker in self._workers:
            worker.close()
        for pump in (pump for pair in self._pumps for pump in pair):
            pump.join(_OUTPUT_S)
        self._console.close()


def _handled() -> list[signal.Signals]:
    """The signals that stop a job. Under nohup, SIGHUP does not."""
    return [
        number
        for number in _FORWARDED
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
    ]


def _open_log(
    stack: contextlib.ExitStack, log_dir: str | os.PathLike[str] | None, rank: int
) -> IO[bytes] | None:
    if log_dir is None:
        return None
    try:
        Path(log_dir).mkdir(parents=True, exist_ok=True)
        return stack.enter_context(open(_log_file(log_dir, rank), "wb"))
    except OSError as error:
        raise LaunchError(
            f"cannot write logs to {os.fspath(log_dir)!r} ({error.strerror}); "
            "expected a directory that can be written to"
        ) from error


def _log_file(log_dir: str | os.PathLike[str] | None, rank: int) -> str:
    """Where a worker's log is; empty where there is none."""
    return "" if log_dir is None else os.path.join(log_dir, f"rank-{rank}.log")


def _terminal(stream: TextIO) -> Terminal:
    from rich.console import Console

    console = Console(file=stream)
    colour = console.color_system is not None and not console.no_color
    return Terminal(
        stream, terminal=stream.isatty() and not console.is_dumb_terminal, colour=colour
    )


def log_message(text: str) -> None:
    """Logs a message about the job to stderr, its first line highlighted."""
    from rich.console import Console

    first, _, rest = text.partition("\n")
    console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    console.print(f"tfaccel launch: {first}", style="bold red")
    if rest:
        console.print(rest)
