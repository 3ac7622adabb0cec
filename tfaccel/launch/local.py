"""Start the workers of a job as processes of this machine, and end them together."""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, TextIO, TypeAlias

from tfaccel.errors import LaunchError
from tfaccel.launch.command import add_command, command_of, variable
from tfaccel.launch.environment import worker_environment
from tfaccel.launch.failure import SAME_MOMENT_S, Exit, first_failure, summary
from tfaccel.launch.output import Pump, Screen
from tfaccel.launch.ports import free_ports
from tfaccel.launch.process import Worker

START_TIMEOUT_S = 300.0
GRACE_S = 10.0

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_OUTPUT_S = 2.0


def run(
    command: Sequence[str],
    *,
    nproc: int,
    env: Mapping[str, str] | None = None,
    log_dir: str | os.PathLike[str] | None = None,
    start_timeout_s: float = START_TIMEOUT_S,
    grace_s: float = GRACE_S,
) -> int:
    """Runs one command as `nproc` workers, until all have ended or one has failed.

    Args:
        command: program and arguments, the same for all workers.
        nproc: the number of workers.
        env: variables for the workers on top of this process's own.
        log_dir: a directory for `rank-N.log`, one a worker; files of earlier jobs are replaced.
        start_timeout_s: how long the workers wait for each other when they start, in seconds.
        grace_s: how long a worker that was asked to stop may take, in seconds.

    Returns:
        0 when all workers ended well; else the exit code of the one that failed first (128 plus
        the signal's number when one killed it), or of the signal that ended this launcher.

    Raises:
        LaunchError: the command cannot be started.
    """
    if nproc < 1:
        raise LaunchError(f"--nproc is {nproc}; expected at least 1 worker")
    if not command:
        raise LaunchError("there is no command; expected a script or a program to run")
    base = {**os.environ, **(env or {})}
    addresses = [f"127.0.0.1:{port}" for port in free_ports(nproc)]
    job_id = uuid.uuid4().hex
    environments = [
        worker_environment(
            base,
            workers=addresses,
            rank=rank,
            job_id=job_id,
            start_timeout_s=start_timeout_s,
            cores=_cores(),
        )
        for rank in range(nproc)
    ]
    with contextlib.ExitStack() as stack:
        return _Job(stack, command, environments, log_dir, grace_s).wait()


@dataclass(frozen=True)
class _Ended:
    """A worker's process has ended, at this time."""

    worker: Worker
    at: float


_Events: TypeAlias = "queue.SimpleQueue[_Ended | signal.Signals]"


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
        self._stop_asked = False
        self._kill_at: float | None = None
        self._signal: signal.Signals | None = None

        stack.enter_context(_signals_to(self._events))
        logs = [_open_log(stack, log_dir, rank) for rank in range(len(environments))]
        self._screens = (_screen(sys.stdout), _screen(sys.stderr))
        self._workers: list[Worker] = []
        stack.callback(self._end_all)
        for rank, environment in enumerate(environments):
            self._workers.append(Worker(command, rank, environment))
        self._pumps = [
            tuple(
                Pump(pipe, worker.rank, screen, log)
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

    def wait(self) -> int:
        """Waits for all workers; stops them at the first failure or signal."""
        stop_at: float | None = None
        while self._running:
            event = self._next(stop_at)
            if isinstance(event, _Ended):
                ended = self._ended(event)
                if ended.failed and stop_at is None and not self._stop_asked:
                    # The worker that this one misses may be about to say what it died of.
                    stop_at = ended.at + (SAME_MOMENT_S if ended.lost_a_peer else 0.0)
                elif ended.failed and not ended.lost_a_peer:
                    stop_at = ended.at
            elif event is not None:
                self._signalled(event)
            now = time.monotonic()
            if stop_at is not None and now >= stop_at and not self._stop_asked:
                self._stop(signal.SIGTERM)
            if self._kill_at is not None and now >= self._kill_at:
                self._kill_at = None
                self._send(signal.SIGKILL)
        return self._verdict()

    def _watch(self, worker: Worker) -> None:
        worker.await_end()
        self._events.put(_Ended(worker, time.monotonic()))

    def _next(self, stop_at: float | None) -> _Ended | signal.Signals | None:
        """The next event, or None when it is time to stop or kill the workers."""
        pending = None if self._stop_asked else stop_at
        times = [at for at in (pending, self._kill_at) if at is not None]
        try:
            left = max(0.0, min(times) - time.monotonic()) if times else None
            return self._events.get(timeout=left)
        except queue.Empty:
            return None

    def _ended(self, event: _Ended) -> Exit:
        worker = event.worker
        self._running.discard(worker)
        status = worker.reap()
        errors = self._pumps[worker.rank][-1]
        if status and not self._stop_asked:  # Its last words may still be on their way.
            errors.join(_OUTPUT_S)
        ended = Exit(worker.rank, worker.pid, status, event.at, errors.last_lines, self._stop_asked)
        self._exits.append(ended)
        return ended

    def _signalled(self, number: signal.Signals) -> None:
        if self._stop_asked:  # The second Ctrl-C: the grace is over.
            self._kill_at = time.monotonic()
            return
        self._signal = number
        self._stop(number)

    def _stop(self, number: int) -> None:
        self._stop_asked = True
        self._kill_at = time.monotonic() + self._grace_s
        self._send(number)

    def _send(self, number: int) -> None:
        for worker in self._workers:
            worker.send(number)

    def _verdict(self) -> int:
        self._end_all()
        if self._signal:
            _say(f"stopped all {len(self._workers)} workers after {self._signal.name}")
            return 128 + self._signal
        cause = first_failure(self._exits)
        if cause is None:
            return 0
        _say(summary(cause, self._exits))
        return cause.code

    def _end_all(self) -> None:
        """Leaves no process behind, whatever happened, and no output unread."""
        deadline = self._kill_at or time.monotonic() + self._grace_s
        while any(worker.send(0) for worker in self._workers) and (
            not self._running and time.monotonic() < deadline
        ):
            time.sleep(0.02)
        for worker in self._workers:
            worker.close()
        for pump in (pump for pair in getattr(self, "_pumps", ()) for pump in pair):
            pump.join(_OUTPUT_S)
        for screen in self._screens:
            screen.close()


@contextlib.contextmanager
def _signals_to(events: _Events) -> Iterator[None]:
    """Puts signals into the queue instead of ending this process."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Only the main thread gets signals, and may ask for them.
        return

    def put(number: int, _: FrameType | None) -> None:
        events.put(signal.Signals(number))

    # Under nohup a lost terminal is no reason to stop.
    wanted = [
        number
        for number in _FORWARDED
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
    ]
    before = {number: signal.signal(number, put) for number in wanted}
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


def _screen(stream: TextIO) -> Screen:
    from rich.console import Console

    console = Console(file=stream)
    colour = console.color_system is not None and not console.no_color
    return Screen(stream, terminal=stream.isatty() and not console.is_dumb_terminal, colour=colour)


def _say(text: str) -> None:
    from rich.console import Console

    first, _, rest = text.partition("\n")
    console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    console.print(f"tfaccel launch: {first}", style="bold red")
    if rest:
        console.print(rest)


def _cores() -> int:
    """The cores that this process may use, which need not be all of the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def main(argv: Sequence[str]) -> int:
    """The command `tfaccel launch`."""
    parser = argparse.ArgumentParser(
        prog="tfaccel launch",
        description="Start the workers of a job on this machine, and end them together.",
        allow_abbrev=False,
    )
    parser.add_argument("--nproc", type=int, required=True, help="the number of workers")
    parser.add_argument(
        "--start-timeout",
        type=float,
        default=START_TIMEOUT_S,
        metavar="S",
        help="how long the workers wait for each other, in seconds (%(default)g)",
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=GRACE_S,
        metavar="S",
        help="how long a worker that is asked to stop may take, in seconds (%(default)g)",
    )
    parser.add_argument("--log-dir", metavar="D", help="also write D/rank-N.log, one a worker")
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        type=variable,
        metavar="K=V",
        help="set a variable for the workers; may be given again",
    )
    add_command(parser)
    options = parser.parse_args(argv)
    return run(
        command_of(parser, options),
        nproc=options.nproc,
        env=dict(options.env),
        log_dir=options.log_dir,
        start_timeout_s=options.start_timeout,
        grace_s=options.grace,
    )
