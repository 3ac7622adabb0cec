"""Failure detector: learns at once that another rank is gone, and ends this process too.

Nothing else reaches a rank that waits inside MPI, no Python exception either.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

_EXIT_DELAY_S = 0.3  # so that a launcher sees the rank first that failed by itself


class FailureDetector:
    """Watches the other ranks while this one works with them.

    Args:
        connection: to the coordinator, open.
        names: what to call each rank.
        end: ends this process, given a line that says why; for tests.
    """

    def __init__(
        self, connection: socket.socket, names: list[str], end: Callable[[str], None] | None = None
    ) -> None:
        self._connection = connection
        self._names = names
        self._end = end or _end
        self._collectives = 0  # started
        self._last: dict[int, int] = {}  # collectives of each rank that has ended
        self._all_done = False
        self._listener = threading.Thread(
            target=self._listen, name="tfaccel-failure-detector", daemon=True
        )
        self._listener.start()

    def before_collective(self) -> None:
        """Call before each collective: one that a rank will never join ends this process."""
        self._collectives += 1
        if self._last:
            self._check()

    def close(self) -> None:
        """Reports a regular end, and waits until all have."""
        try:
            self._connection.sendall(f"done {self._collectives}\n".encode())
        except OSError:
            return
        # Python must not end under a thread that listens.
        self._listener.join()

    def abort(self) -> None:
        """Disconnects without reporting an end: the others end too."""
        self._connection.close()

    def _check(self) -> None:
        for rank, last in list(self._last.items()):
            if self._collectives > last:
                self._end(
                    f"{self._names[rank]} has ended after {last} collectives and this worker is "
                    f"in number {self._collectives}; expected all to train, evaluate and save alike"
                )

    def _listen(self) -> None:
        try:
            with self._connection.makefile("r") as stream:
                for fields in map(str.split, stream):
                    self._receive(fields)
                    if self._all_done:
                        return
        except (OSError, ValueError):
            pass
        self._end(f"{self._names[0]} is gone")

    def _receive(self, fields: list[str]) -> None:
        if fields[0] == "gone":
            self._end(f"{self._names[int(fields[1])]} is gone")
        elif fields[0] == "done":
            self._last[int(fields[1])] = int(fields[2])
            self._check()
        elif fields[0] == "end":
            self._all_done = True


def _end(why: str) -> NoReturn:
    time.sleep(_EXIT_DELAY_S)
    print(f"tfaccel: {why}; this worker cannot go on without it.", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)
