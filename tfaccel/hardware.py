"""What devices are here: read from TensorFlow once, then decided on as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """One logical device of this process.

    Attributes:
        kind: ``"CPU"``, ``"GPU"`` or ``"TPU"``.
        index: its number among the devices of that kind.
        description: the maker's name for it where TensorFlow knows one, else ``""``.
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


def detect() -> tuple[Device, ...]:
    """Reads the logical devices of this process from TensorFlow (and so configures it).

    Returns:
        The CPUs, then the GPUs, then the TPU cores, each in TensorFlow's order.
    """
    import tensorflow as tf

    physical = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in physical]
    found: list[Device] = []
    for kind in ("CPU", "GPU", "TPU"):
        for index, _ in enumerate(tf.config.list_logical_devices(kind)):
            known = details[index] if kind == "GPU" and index < len(details) else {}
            found.append(
                Device(
                    kind,
                    index,
                    description=str(known.get("device_name", "")),
                    compute_capability=known.get("compute_capability"),
                )
            )
    return tuple(found)


def count(devices: Sequence[Device], kind: str) -> int:
    """How many devices of one kind there are.

    >>> count([Device("CPU", 0), Device("GPU", 0)], "GPU")
    1
    """
    return sum(device.kind == kind for device in devices)
