"""Links between workers: this machine's loopback, or slower ones made of network namespaces.

Each worker gets a namespace, joined by a veth to a bridge that stands in one more. `tc` shapes both
ends of every veth, so a worker sends and receives at the link's rate. Namespaces hold everything:
with them gone, nothing is left.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

RATES = {"none": None, "1gbit": "1gbit", "200mbit": "200mbit"}

_APART = {
    # MPI sees ranks on one machine and would share memory.
    "MPIR_CVAR_NOLOCAL": "1",
    "MPIR_CVAR_CH4_NETMOD": "ofi",
    "FI_PROVIDER": "tcp",
    "FI_TCP_IFACE": "eth0",
    "GLOO_SOCKET_IFNAME": "eth0",
}


class LinkError(RuntimeError):
    """A link that cannot be made here."""


@dataclass(frozen=True)
class Place:
    """Where a worker runs.

    Attributes:
        address: at which the others reach it.
        prefix: what its command starts with.
        env: what its environment has besides.
    """

    address: str
    prefix: tuple[str, ...]
    env: dict[str, str]


@contextmanager
def places(link: str, workers: int) -> Iterator[list[Place]]:
    """A place for each worker; what was made for them goes when the context is left.

    Raises:
        LinkError: a shaped link was requested and cannot be made.
    """
    rate = RATES[link]
    if rate is None:
        yield [Place("127.0.0.1", (), {"GLOO_SOCKET_IFNAME": "lo"})] * workers
        return
    _check(link)
    hub, names = (
        f"tfaccel-{os.getpid()}-hub",
        [f"tfaccel-{os.getpid()}-{i}" for i in range(workers)],
    )
    made: list[str] = []
    try:
        for name in (hub, *names):
            made.append(name)
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        _run("ip", "-n", hub, "link", "add", "bridge0", "type", "bridge")
        _run("ip", "-n", hub, "link", "set", "bridge0", "up")
        for i, name in enumerate(names):
            _join(hub, f"port{i}", name, _address(i), rate)
        yield [
            # Not `ip netns exec`, which mounts another /sys and hides the cgroups.
            Place(_address(i), ("nsenter", f"--net=/run/netns/{name}", "--"), _APART)
            for i, name in enumerate(names)
        ]
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "delete", name], check=False, stderr=subprocess.DEVNULL)


def _join(hub: str, port: str, name: str, address: str, rate: str) -> None:
    _run("ip", "-n", hub, "link", "add", port, "type", "veth", "peer", "eth0", "netns", name)
    _run("ip", "-n", hub, "link", "set", port, "master", "bridge0", "up")
    _run("ip", "-n", name, "address", "add", f"{address}/24", "dev", "eth0")
    _run("ip", "-n", name, "link", "set", "eth0", "up")
    for space, device in ((hub, port), (name, "eth0")):
        shape = ("tbf", "rate", rate, "burst", "128kb", "latency", "50ms")
        _run("tc", "-n", space, "qdisc", "add", "dev", device, "root", *shape)


def _address(worker: int) -> str:
    return f"10.99.0.{worker + 1}"


def _check(link: str) -> None:
    if os.geteuid():
        raise LinkError(f"--link {link} was requested by uid {os.geteuid()}; it takes root")
    missing = [tool for tool in ("ip", "tc", "nsenter") if shutil.which(tool) is None]
    if missing:
        raise LinkError(
            f"--link {link}: there is no {' and no '.join(missing)} here; "
            "install iproute2 and util-linux"
        )


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise LinkError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
