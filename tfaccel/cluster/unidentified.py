"""Unidentified connections: a limited number, for a limited time.

Any process that reaches a port can open connections and leave them idle, or send a byte at times.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable
from typing import Generic, TypeVar

LIMIT = 256
SECONDS = 10.0
_NO_WAIT = struct.pack("ii", 1, 0)  # SO_LINGER: drop the connection, which frees its port

Peer = TypeVar("Peer")


class Unidentified(Generic[Peer]):
    """The connections that are not yet identified, the oldest first.

    Args:
        size: how many are expected.
        seconds: how long each may take; None for `SECONDS`.
        clock: the time in seconds, for tests.
    """

    def __init__(
        self, size: int, seconds: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit, self._clock = size + LIMIT, clock
        self._seconds = SECONDS if seconds is None else seconds
        self._deadlines: dict[Peer, float] = {}

    def add(self, peer: Peer) -> None:
        """Registers a new connection."""
        self._deadlines[peer] = self._clock() + self._seconds

    def discard(self, peer: Peer) -> None:
        """Removes a connection that was identified or closed."""
        self._deadlines.pop(peer, None)

    def pop_overdue(self) -> list[Peer]:
        """Removes and returns overdue connections, and the oldest when there are too many."""
        now, many = self._clock(), len(self._deadlines) - self._limit
        # All have the same time limit, so they are removed first in, first out.
        overdue = [
            peer
            for place, (peer, deadline) in enumerate(self._deadlines.items())
            if place < many or deadline <= now
        ]
        for peer in overdue:
            del self._deadlines[peer]
        return overdue

    def seconds_left(self) -> float | None:
        """Time until the next deadline; None when there is none."""
        first = next(iter(self._deadlines.values()), None)
        return None if first is None else max(0.0, first - self._clock())


def abort(connection: socket.socket) -> None:
    """Closes a connection at once: this port is not busy for a minute after (TIME_WAIT)."""
    with contextlib.suppress(OSError):  # already broken
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_WAIT)
    connection.close()
