"""A slow and long line: python -m tests.survival.slow_line IF1 IF2 MEGABITS DELAY_MS.

Carries frames between two interfaces, each at the rate and after the delay, as the kernel here has
no netem. Frames that would wait longer than a quarter of a second are dropped, as a router does.
"""

from __future__ import annotations

import selectors
import socket
import sys
import time
from collections import deque

_LONGEST_S = 0.25


class Direction:
    """Frames on their way from one end to the other."""

    def __init__(self, to: socket.socket, megabits: float, delay_s: float) -> None:
        self._to, self._rate, self._delay_s = to, megabits * 1e6 / 8, delay_s
        self._on_the_way: deque[tuple[float, bytes]] = deque()
        self._sent_by = 0.0

    def add(self, frame: bytes, now: float) -> None:
        begin = max(now, self._sent_by)
        if begin - now > _LONGEST_S:
            return
        self._sent_by = begin + len(frame) / self._rate
        self._on_the_way.append((self._sent_by + self._delay_s, frame))

    def deliver(self, now: float) -> float | None:
        """Hands over what has arrived; the seconds until the next one does."""
        while self._on_the_way and self._on_the_way[0][0] <= now:
            self._to.send(self._on_the_way.popleft()[1])
        return self._on_the_way[0][0] - now if self._on_the_way else None


def main() -> None:
    names, megabits, delay_ms = sys.argv[1:3], float(sys.argv[3]), float(sys.argv[4])
    ends = []
    for name in names:
        end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        end.bind((name, 0))
        end.setblocking(False)
        ends.append(end)
    ways = {
        one: Direction(other, megabits, delay_ms / 1e3)
        for one, other in zip(ends, reversed(ends), strict=True)
    }
    print("ready", flush=True)
    with selectors.DefaultSelector() as waiting:
        for end in ends:
            waiting.register(end, selectors.EVENT_READ)
        pause: float | None = None
        while True:
            for key, _ in waiting.select(pause):
                way = ways[key.fileobj]  # type: ignore[index]
                while True:
                    try:
                        frame, address = key.fileobj.recvfrom(1 << 16)  # type: ignore[union-attr]
                    except BlockingIOError:
                        break
                    if address[2] != socket.PACKET_OUTGOING:
                        way.add(frame, time.monotonic())
            now = time.monotonic()
            pauses = [left for way in ways.values() if (left := way.deliver(now)) is not None]
            pause = max(0.0, min(pauses)) if pauses else None


if __name__ == "__main__":
    main()
