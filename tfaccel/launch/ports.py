"""Free ports of this machine, for servers that start a while later."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

from tfaccel.errors import LaunchError

_FIRST = 10_000
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_ports(count: int) -> tuple[int, ...]:
    """Ports that nobody listens on, all different.

    They stay below the range from which the system gives outgoing connections theirs, where it
    says which that is: a port from that range may be gone before its server has started.

    Raises:
        LaunchError: there are not so many.
    """
    end = _ephemeral_start()
    candidates: list[int] = []
    if end - _FIRST >= 100 * count:
        # Of its own seed: two launchers in one second must not try the same ports.
        candidates = random.SystemRandom().sample(range(_FIRST, end), 50 * count)
    with contextlib.ExitStack() as held:
        found: list[int] = []
        for port in (*candidates, *[0] * count):
            if len(found) == count:
                break
            with contextlib.suppress(OSError):
                listener = held.enter_context(socket.create_server(("", port)))
                found.append(listener.getsockname()[1])
        if len(found) < count:
            raise LaunchError(
                f"found {len(found)} free ports on this machine; expected {count}, one a worker: "
                "start fewer workers"
            )
        return tuple(found)


def _ephemeral_start() -> int:
    try:
        return int(_RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0
