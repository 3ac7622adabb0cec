"""A rank's lifeline: it hears at once that another rank is gone, and ends this process too.

A rank that waits inside MPI hears nothing else: no exception of Python's can reach it there.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

_AFTER_OTHERS_S = 0.3  # so that a launcher sees the rank first that failed by itself


class Lifeline:
    """Watches the other ranks while this one works with them.

    Args:
        line: an open line to the switchboard.
        names: what to call each rank.
        end: ends this process, given a line that says why; for tests.
    """

    def __init__(
        self, line: socket.socket, names: list[str], end: Callable[[str], None] | None = None
    ) -> None:
        self._line = line
        self._names = names
        self._end = end or _end
        self._begun = 0  # collectives
        self._last: dict[int, int] = {}  # collectives of each rank that has ended
        self._all_done = False
        self._listener = threading.Thread(target=self._listen, name="tfaccel-lifeline", daemon=True)
        self._listener.start()

    def begin(self) -> None:
        """Call before each collective: one that a rank will never join ends this process."""
        self._begun += 1
        if self._last:
            self._check()

    def leave(self) -> None:
        """Says goodbye, and waits until all have."""
        try:
            self._line.sendall(f"done {self._begun}\n".encode())
        except OSError:
            return
        # Python must not end under a thread that listens.
        self._listener.join()

    def drop(self) -> None:
        """Leaves without a goodbye: the others end too."""
        self._line.close()

    def _check(self) -> None:
        for rank, last in list(self._last.items()):
            if self._begun > last:
                self._end(
                    f"{self._names[rank]} has ended after {last} collectives and this worker is "
                    f"in number {self._begun}; expected all to train, evaluate and save alike"
                )

    def _listen(self) -> None:
        try:
            with self._line.makefile("r") as said:
                for words in map(str.split, said):
                    self._heard(words)
                    if self._all_done:
                        return
        except (OSError, ValueError):
            pass
        self._end(f"{self._names[0]} is gone")

    def _heard(self, words: list[str]) -> None:
        if words[0] == "gone":
            self._end(f"{self._names[int(words[1])]} is gone")
        elif words[0] == "done":
            self._last[int(words[1])] = int(words[2])
            self._check()
        elif words[0] == "end":
            self._all_done = True


def _end(why: str) -> NoReturn:
    time.sleep(_AFTER_OTHERS_S)
    print(f"tfaccel: {why}; this worker cannot go on without it.", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)
