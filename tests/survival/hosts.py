"""Hosts that are network namespaces of this machine, joined by a switch that is one too.

Each host has an address, a link that can be taken down, and a name of its own, so that MPI takes it
for another machine. This machine's own network is not touched, and nothing is left behind.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import functools
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_SWITCH = "switch"


@dataclass(frozen=True)
class Host:
    """One host.

    Attributes:
        name: of the host, and of its link at the switch.
        address: its IP address.
        namespace: where it is.
        switch: the namespace of the switch.
    """

    name: str
    address: str
    namespace: str
    switch: str

    def command(self, command: Sequence[str]) -> list[str]:
        """The command that runs another one on this host."""
        script = 'hostname "$0" && exec "$@"'
        return [
            *_inside(self.namespace),
            "unshare",
            "--uts",
            "sh",
            "-c",
            script,
            self.name,
            *command,
        ]

    def link(self, up: bool) -> None:
        """Plugs the host's cable in, or pulls it out."""
        _run(*_inside(self.switch), "ip", "link", "set", self.name, "up" if up else "down")


@functools.cache
def why_not() -> str:
    """Why there can be no hosts here; empty where there can."""
    missing = [one for one in ("ip", "nsenter", "unshare") if shutil.which(one) is None]
    if missing:
        return f"needs {', '.join(missing)} (iproute2, util-linux)"
    try:
        with hosts(1) as (host,):
            _run(*host.command(["true"]))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", "") or error
        return f"network namespaces may not be made here: {said}".strip()
    return ""


@contextlib.contextmanager
def hosts(number: int) -> Iterator[list[Host]]:
    """So many hosts on one switch; what still runs on them at the end is killed.

    Raises:
        subprocess.CalledProcessError: they may not be made.
    """
    prefix = f"tfaccel-{os.getpid()}-{time.monotonic_ns()}"
    switch = f"{prefix}-{_SWITCH}"
    with contextlib.ExitStack() as stack:
        stack.enter_context(_namespace(switch))
        _run(*_inside(switch), "ip", "link", "add", "name", "bridge", "type", "bridge")
        _run(*_inside(switch), "ip", "link", "set", "bridge", "up")
        created = []
        for number_of in range(number):
            name = f"host{number_of}"
            host = Host(name, f"10.77.0.{number_of + 1}", f"{prefix}-{name}", switch)
            stack.enter_context(_namespace(host.namespace))
            _cable(host)
            created.append(host)
        yield created


@contextlib.contextmanager
def slow(first: Host, second: Host, megabits: float, delay_ms: float) -> Iterator[None]:
    """Joins two hosts by a slow and long line in place of the switch, while the block runs."""
    for host in (first, second):
        _run(*_inside(host.switch), "ip", "link", "set", host.name, "nomaster")
    line = [sys.executable, "-m", "tests.survival.slow_line", first.name, second.name]
    process = subprocess.Popen(
        [*_inside(first.switch), *line, str(megabits), str(delay_ms)], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline(), "the slow line did not start"
        yield
    finally:
        process.kill()
        process.communicate()
        for host in (first, second):
            _run(*_inside(host.switch), "ip", "link", "set", host.name, "master", "bridge")


@contextlib.contextmanager
def _namespace(name: str) -> Iterator[None]:
    _run("ip", "netns", "add", name)
    try:
        _run(*_inside(name), "ip", "link", "set", "lo", "up")
        yield
    finally:
        pids = _run("ip", "netns", "pids", name).split()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        _run("ip", "netns", "delete", name)  # and with it all links


def _cable(host: Host) -> None:
    there = ["ip", "link", "add", "name", "cable", "type", "veth", "peer", "name", host.name]
    _run(*_inside(host.namespace), *there, "netns", host.switch)
    _run(*_inside(host.namespace), "ip", "address", "add", f"{host.address}/24", "dev", "cable")
    _run(*_inside(host.switch), "ip", "link", "set", host.name, "master", "bridge", "up")
    _run(*_inside(host.namespace), "ip", "link", "set", "cable", "up")
    no_offload = "from tests.survival.hosts import frames_as_on_a_wire as f; f('cable')"
    _run(*_inside(host.namespace), sys.executable, "-c", no_offload)


def frames_as_on_a_wire(interface: str) -> None:
    """Lets the kernel finish each frame itself: whole checksums, no more than 1500 bytes."""
    siocethtool, tx_checksums, tso, gso = 0x8946, 0x17, 0x1F, 0x24  # linux/ethtool.h
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for command in (tx_checksums, tso, gso):
            off = array.array("I", [command, 0])
            request = struct.pack("16sP", interface.encode(), off.buffer_info()[0])
            fcntl.ioctl(any_socket, siocethtool, request)


def _inside(namespace: str) -> list[str]:
    # `ip netns exec` would hide the control groups.
    return ["nsenter", f"--net=/run/netns/{namespace}"]


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
