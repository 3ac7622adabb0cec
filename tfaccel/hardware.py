"""The devices of this process: read from TensorFlow once, then used as plain data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from tfaccel import installed


@dataclass(frozen=True)
class Device:
    """One device of this process.

    Attributes:
        kind: ``"CPU"``, ``"GPU"`` or ``"TPU"``.
        index: its number among the devices of that kind.
        description: the vendor's name for it where TensorFlow knows one, else ``""``.
        compute_capability: a GPU's, as ``(major, minor)``, else None.
    """

    kind: str
    index: int
    description: str = ""
    compute_capability: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """TensorFlow's short name, for example ``"GPU:0"``."""
        return f"{self.kind}:{self.index}"


def cores() -> int:
    """The processor cores that this process may use, which need not be all of the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def detect() -> tuple[Device, ...]:
    """Reads the devices of this process from TensorFlow, without starting any of them.

    Returns:
        The CPUs, then the GPUs, then the TPU cores, each in TensorFlow's order. A physical device
        that was divided into logical ones counts as those, and a hidden one is left out.

    Raises:
        StrategyError: when TensorFlow, not yet imported, would end the process.
    """
    installed.check_before_import()
    import tensorflow as tf

    devices: list[Device] = []
    for kind in ("CPU", "GPU", "TPU"):
        index = 0
        for physical in tf.config.get_visible_devices(kind):
            parts = tf.config.get_logical_device_configuration(physical) or [None]
            details = tf.config.experimental.get_device_details(physical) if kind == "GPU" else {}
            for _ in parts:
                devices.append(
                    Device(
                        kind,
                        index,
                        description=str(details.get("device_name", "")),
                        compute_capability=details.get("compute_capability"),
                    )
                )
                index += 1
    return tuple(devices)


def count(devices: Sequence[Device], kind: str) -> int:
    """How many devices of one kind there are.

    >>> count([Device("CPU", 0), Device("GPU", 0)], "GPU")
    1
    """
    return sum(device.kind == kind for device in devices)
