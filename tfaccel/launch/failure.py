"""Which worker failed first, and its last output: pure functions of how the workers ended."""

from __future__ import annotations

import re
import signal
from collections.abc import Collection, Sequence
from dataclasses import dataclass

TRACEBACK_LINES = 40
TAIL_LINES = 20
SAME_MOMENT_S = 1.0

_TRACEBACK = "Traceback (most recent call last)"

# The last output of a worker that died only because another one did.
_PEER_LOST = re.compile(
    r"UnavailableError|DeadlineExceededError|AbortedError"
    r"|Connection reset by peer|Socket closed|[Cc]oordination ?service|CoordinationService"
    r"|failed to connect to all addresses|Collective ops is aborted"
    r"|aborting this worker"
)
# The message of a worker that timed out waiting for the others (`tfaccel/cluster/rendezvous.py`).
_NOT_COME = re.compile(r"workers did not connect within|did not reach worker 0")


@dataclass(frozen=True)
class Exit:
    """How one worker ended.

    Attributes:
        rank: which worker.
        pid: its process.
        status: as `subprocess` gives it: the exit code, or minus the signal that killed it.
        at: when, in seconds of a clock shared by all workers.
        stderr: its last lines there.
        stopped: whether it had been sent a stop signal before it ended.
        stdout: its last lines there, if they were not shown.
    """

    rank: int
    pid: int
    status: int
    at: float
    stderr: tuple[str, ...] = ()
    stopped: bool = False
    stdout: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether it failed on its own."""
        return self.status != 0 and not self.stopped

    @property
    def code(self) -> int:
        """The exit code as a shell reports it.

        >>> Exit(0, 1, -9, 0.0).code
        137
        """
        return 128 - self.status if self.status < 0 else self.status

    @property
    def description(self) -> str:
        """The exit code or the signal's name, in words.

        >>> Exit(0, 1, -9, 0.0).description
        'killed by SIGKILL'
        """
        if self.status >= 0:
            return f"exit code {self.status}"
        try:
            return f"killed by {signal.Signals(-self.status).name}"
        except ValueError:
            return f"killed by signal {-self.status}"

    @property
    def lost_peer(self) -> bool:
        """Whether another worker's end caused its own, by its exception or last lines."""
        words = error_tail(self.stderr)
        if words and _TRACEBACK in words[0]:
            # Only the exception itself: TensorFlow may log about its peers on any exit.
            words = next(((line,) for line in words[1:] if line and not line[0].isspace()), ())
        return any(_PEER_LOST.search(line) for line in words)


def first_failure(exits: Sequence[Exit], window_s: float = SAME_MOMENT_S) -> Exit | None:
    """The failure that most likely caused the others.

    Args:
        exits: how workers ended, in the order observed.
        window_s: failures this close to the first count as simultaneous, in seconds. Of these, the
            first that does not report a lost peer is the cause.

    Returns:
        The cause, or None when no worker failed on its own.
    """
    failures = [one for one in exits if one.failed]
    if not failures:
        return None
    moment = [one for one in failures if one.at - failures[0].at <= window_s]
    return next((one for one in moment if not one.lost_peer), failures[0])


def missing_workers(exits: Sequence[Exit], arrived: Collection[int]) -> list[int]:
    """The workers that kept the others from starting.

    Args:
        exits: how all workers of a failed job ended, in the order observed.
        arrived: the ranks of those that had joined the rendezvous.

    Returns:
        The ranks of those that failed before they joined, or did not join in time; none if the job
        failed for another reason.
    """
    cause = first_failure(exits)
    absent = [one for one in exits if one.rank not in arrived]
    if cause is not None and cause.rank not in arrived:
        return sorted(one.rank for one in absent if one.failed)
    if cause is not None and any(_NOT_COME.search(line) for line in error_tail(cause.stderr)):
        return sorted(one.rank for one in absent)
    return []


def error_tail(stderr: Sequence[str]) -> tuple[str, ...]:
    """The last traceback among lines of stderr and all after it, else the last lines."""
    for place in range(len(stderr) - 1, -1, -1):
        if _TRACEBACK in stderr[place]:
            return tuple(stderr[place : place + TRACEBACK_LINES])
    return tuple(stderr[-TAIL_LINES:])


def summary(cause: Exit, exits: Sequence[Exit], log: str = "") -> str:
    """What to print last: the cause, how the others ended, and the output of the cause.

    Args:
        cause: the failure.
        exits: how all workers ended.
        log: the path of the file with the cause's whole output, if there is one.
    """
    lines = [f"rank {cause.rank} failed first: {cause.description} (pid {cause.pid})"]
    others = [
        f"rank {one.rank} {'was stopped' if one.stopped else one.description}"
        for one in sorted(exits, key=lambda one: one.rank)
        if one.rank != cause.rank
    ]
    if others:
        lines.append(f"the others: {', '.join(others)}")
    return "\n".join([*lines, *output_tail(cause, log)])


def output_tail(cause: Exit, log: str = "") -> list[str]:
    """The last output of a worker, line by line; of its stdout, only what was not shown.

    Args:
        cause: how it ended.
        log: the path of the file with its whole output, if there is one.
    """
    lines = [f"full log: {log}"] if log else []
    if cause.stdout:
        lines += ["the end of its stdout:", *(f"  {line}" for line in cause.stdout[-TAIL_LINES:])]
    words = error_tail(cause.stderr)
    lines.append("the end of its stderr:" if words else "its stderr is empty")
    return [*lines, *(f"  {line}" for line in words)]
