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
    """Free ports, all different.

    They stay below the system's ephemeral port range, where it reports one: a port from that range
    may be taken before its server has started.

    Raises:
        LaunchError: there are not enough.
    """
    end = _ephemeral_start()
    candidates: list[int] = []
    if end - _FIRST >= 100 * count:
        # With its own seed: two launchers in the same second must not try the same ports.
        candidates = random.SystemRandom().sample(range(_FIRST, end), 50 * count)
    with contextlib.ExitStack() as listeners:
        ports: list[int] = []
        for port in (*candidates, *[0] * count):
            if len(ports) == count:
                break
            with contextlib.suppress(OSError):
                listener = listeners.enter_context(socket.create_server(("", port)))
                ports.append(listener.getsockname()[1])
        if len(ports) < count:
            raise LaunchError(
                f"found {len(ports)} free ports on this machine; expected {count}, one per worker: "
                "start fewer workers"
            )
        return tuple(ports)


def _ephemeral_start() -> int:
    try:
        return int(_RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0
