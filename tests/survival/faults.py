"""What happens to a job: one fault a function."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.survival.hosts import Host
from tests.survival.jobs import Job


def kill(job: Job, rank: int) -> None:
    """The out-of-memory killer, or a machine that is gone."""
    job.signal(rank, signal.SIGKILL)


def freeze(job: Job, rank: int) -> None:
    """A process that hangs, with all its connections open."""
    job.signal(rank, signal.SIGSTOP)


def tell_to_stop(job: Job, rank: int) -> None:
    """A scheduler that wants the machine back."""
    job.signal(rank, signal.SIGTERM)


@contextlib.contextmanager
def cable_out(host: Host, seconds: float | None = None) -> Iterator[None]:
    """A cut network: for some seconds, or while the block runs."""
    host.link(up=False)
    try:
        if seconds is not None:
            time.sleep(seconds)
            host.link(up=True)
        yield
    finally:
        host.link(up=True)


@contextlib.contextmanager
def disk(path: Path, kilobytes: int) -> Iterator[None]:
    """A disk with so much room, of which nothing is kept when the block ends."""
    path.mkdir(parents=True, exist_ok=True)
    _mount("mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tfaccel-tests", str(path))
    try:
        yield
    finally:
        _mount("umount", str(path))


def grow(path: Path, kilobytes: int) -> None:
    """Makes room on a disk of `disk`."""
    _mount("mount", "-o", f"remount,size={kilobytes}k", str(path))


def cut_short(checkpoints: Path) -> str:
    """Cuts the last byte off the variables of the newest checkpoint; its name."""
    newest = max(checkpoints.glob("step-" + "[0-9]" * 10))
    data = max(newest.glob("*.safetensors"))
    data.write_bytes(data.read_bytes()[:-1])
    return newest.name


def _mount(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=60)
