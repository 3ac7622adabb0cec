"""Which worker failed first, and what it said: pure functions of how the workers ended."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

TRACEBACK_LINES = 40
TAIL_LINES = 20
SAME_MOMENT_S = 1.0

_TRACEBACK = "Traceback (most recent call last)"

# What a worker's last words are when it died only because another one did.
_PEER_LOST = re.compile(
    r"UnavailableError|DeadlineExceededError|AbortedError"
    r"|Connection reset by peer|Socket closed|[Cc]oordination ?service|CoordinationService"
    r"|failed to connect to all addresses|Collective ops is aborted"
)


@dataclass(frozen=True)
class Exit:
    """How one worker ended.

    Attributes:
        rank: which worker.
        pid: its process.
        status: as `subprocess` gives it: the exit code, or minus the signal that killed it.
        at: when, in seconds of a clock that is common to all workers.
        stderr: its last lines there.
        stopped: whether it had been told to stop before it ended.
    """

    rank: int
    pid: int
    status: int
    at: float
    stderr: tuple[str, ...] = ()
    stopped: bool = False

    @property
    def failed(self) -> bool:
        """Whether it ended otherwise than well, of itself."""
        return self.status != 0 and not self.stopped

    @property
    def code(self) -> int:
        """The exit code as a shell gives it.

        >>> Exit(0, 1, -9, 0.0).code
        137
        """
        return 128 - self.status if self.status < 0 else self.status

    @property
    def description(self) -> str:
        """The exit code or the signal's name, for people.

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
        """Whether it died of another worker's end, as its exception or its last lines say."""
        words = error_tail(self.stderr)
        if words and _TRACEBACK in words[0]:
            # Only the exception itself: TensorFlow may log about its peers on any way out.
            words = next(((line,) for line in words[1:] if line and not line[0].isspace()), ())
        return any(_PEER_LOST.search(line) for line in words)


def first_failure(exits: Sequence[Exit], window_s: float = SAME_MOMENT_S) -> Exit | None:
    """The failure that most likely caused the others.

    Args:
        exits: how workers ended, in the order in which that was seen.
        window_s: failures so close to the first count as one moment, in seconds. Of these the
            first that does not complain of a lost peer is the cause.

    Returns:
        The cause, or None when no worker failed of itself.
    """
    failures = [one for one in exits if one.failed]
    if not failures:
        return None
    moment = [one for one in failures if one.at - failures[0].at <= window_s]
    return next((one for one in moment if not one.lost_peer), failures[0])


def error_tail(stderr: Sequence[str]) -> tuple[str, ...]:
    """The last traceback among lines of stderr and all after it, else the last lines."""
    for place in range(len(stderr) - 1, -1, -1):
        if _TRACEBACK in stderr[place]:
            return tuple(stderr[place : place + TRACEBACK_LINES])
    return tuple(stderr[-TAIL_LINES:])


def summary(cause: Exit, exits: Sequence[Exit]) -> str:
    """What to print last: the cause, how the others ended, and what the cause said."""
    lines = [f"rank {cause.rank} failed first: {cause.description} (pid {cause.pid})"]
    others = [
        f"rank {one.rank} {'was stopped' if one.stopped else one.description}"
        for one in sorted(exits, key=lambda one: one.rank)
        if one.rank != cause.rank
    ]
    if others:
        lines.append(f"the others: {', '.join(others)}")
    words = error_tail(cause.stderr)
    lines.append("the end of its stderr:" if words else "its stderr is empty")
    return "\n".join([*lines, *(f"  {line}" for line in words)])
