"""Memory of this process and of its accelerators."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Memory(NamedTuple):
    """Current and peak bytes; None where they cannot be read."""

    now: float | None = None
    peak: float | None = None


def of_process() -> Memory:
    """Resident memory of this process."""
    return parse_status(_status()) or Memory(None, _peak())


def _status() -> str:
    try:
        return Path("/proc/self/status").read_text("utf-8")
    except OSError:
        return ""


def _peak() -> float | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    kilobytes = sys.platform != "darwin"
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1024 if kilobytes else 1)


def parse_status(text: str) -> Memory | None:
    r"""Reads Linux's figures for a process (proc(5)); None if the text has another form.

    >>> parse_status("VmHWM:\t 20 kB\nVmRSS:\t 10 kB\n")
    Memory(now=10240.0, peak=20480.0)
    """
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    if not {"VmHWM", "VmRSS"} <= fields.keys():
        return None
    now, peak = (float(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return Memory(now, peak)


def of_devices(devices: Sequence[str]) -> Memory:
    """Memory of accelerators, all together.

    Args:
        devices: their names, such as ``"GPU:0"``; CPUs have none of their own.
    """
    names = [name for name in devices if not name.startswith("CPU")]
    if not names:
        return Memory()
    import tensorflow as tf

    try:
        usages = [tf.config.experimental.get_memory_info(name) for name in names]
    except (ValueError, RuntimeError, tf.errors.OpError):  # devices that do not count
        return Memory()
    return Memory(sum(f["current"] for f in usages), sum(f["peak"] for f in usages))
