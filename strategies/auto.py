"""`auto`: picks the strategy for the available devices and cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tfaccel.cluster.cluster import Cluster
from tfaccel.hardware import Device, count


@dataclass(frozen=True)
class Choice:
    """A strategy's name, and why it was chosen (a phrase for messages)."""

    name: str
    reason: str


def choose(
    name: str,
    available: Sequence[Device],
    cluster: Cluster | None,
    devices: int | None = None,
    device_type: str = "auto",
) -> Choice:
    """Decides what `auto` means; any other name means itself.

    Args:
        name: a strategy's name, or ``"auto"``.
        available: the devices of this process.
        cluster: the workers of this job, or None.
        devices: how many devices were requested, or None.
        device_type: the kind that was requested, or ``"auto"``.

    >>> choose("auto", [Device("CPU", 0), Device("GPU", 0), Device("GPU", 1)], None)
    Choice(name='mirrored', reason='2 GPUs in this machine')
    """
    if name != "auto":
        return Choice(name, "requested")
    if device_type in ("auto", "tpu") and count(available, "TPU"):
        return Choice("tpu", f"{count(available, 'TPU')} TPU cores")
    if cluster is not None and cluster.size > 1:
        return Choice("multi_worker_mirrored", f"{cluster.size} workers in {cluster.source}")
    gpus = count(available, "GPU") if device_type in ("auto", "gpu") else 0
    gpus = gpus if devices is None else min(gpus, devices)
    if gpus > 1:
        return Choice("mirrored", f"{gpus} GPUs in this machine")
    if gpus == 1:
        return Choice("one_device", "one GPU in this machine")
    if devices is not None and devices > 1:
        return Choice("mirrored", f"{devices} logical CPUs were requested")
    return Choice(
        "one_device", "no accelerator and no cluster; TensorFlow's threads use all CPU cores"
    )
