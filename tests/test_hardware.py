from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass
from typing import Any

import pytest
import tensorflow as tf

from tests.support import run_child
from tfaccel.hardware import Device, count, detect


@dataclass(frozen=True)
class Physical:
    kind: str
    parts: int = 0


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes TensorFlow tell of these physical devices."""

    def tell(*devices: Physical, details: dict[str, Any] | None = None) -> None:
        config = tf.config
        here = lambda kind=None: [d for d in devices if d.kind == kind]  # noqa: E731
        monkeypatch.setattr(config, "get_visible_devices", here)
        parts = lambda d: [object()] * d.parts or None  # noqa: E731
        monkeypatch.setattr(config, "get_logical_device_configuration", parts)
        found = lambda d: details or {}  # noqa: E731
        monkeypatch.setattr(config.experimental, "get_device_details", found)

    return tell


def test_the_name_is_tensorflow_s() -> None:
    assert Device("GPU", 3).name == "GPU:3"
    with pytest.raises(FrozenInstanceError):
        Device("GPU", 3).index = 4  # type: ignore[misc]


def test_count() -> None:
    here = [Device("CPU", 0), Device("GPU", 0), Device("GPU", 1)]
    assert [count(here, kind) for kind in ("CPU", "GPU", "TPU")] == [1, 2, 0]


def test_devices_come_by_kind_in_order(machine: Any) -> None:
    machine(Physical("TPU"), Physical("GPU"), Physical("CPU"), Physical("GPU"))
    assert [device.name for device in detect()] == ["CPU:0", "GPU:0", "GPU:1", "TPU:0"]


def test_a_divided_device_counts_as_its_parts(machine: Any) -> None:
    machine(Physical("CPU", parts=3), Physical("GPU", parts=2), Physical("GPU"))
    assert [d.name for d in detect()] == ["CPU:0", "CPU:1", "CPU:2", "GPU:0", "GPU:1", "GPU:2"]


def test_a_gpu_has_its_maker_s_name_and_capability(machine: Any) -> None:
    details = {"device_name": "NVIDIA L4", "compute_capability": (8, 9)}
    machine(Physical("CPU"), Physical("GPU"), details=details)
    assert detect() == (Device("CPU", 0), Device("GPU", 0, "NVIDIA L4", (8, 9)))


def test_a_gpu_without_details(machine: Any) -> None:
    machine(Physical("GPU"))
    assert detect() == (Device("GPU", 0),)


def test_nothing(machine: Any) -> None:
    machine()
    assert detect() == ()


def test_detecting_starts_no_device() -> None:
    # Devices can be divided only while TensorFlow has not started them.
    run_child(
        [
            "-c",
            "from tfaccel import hardware\n"
            "assert hardware.count(hardware.detect(), 'CPU') == 1\n"
            "import tensorflow as tf\n"
            "cpu = tf.config.list_physical_devices('CPU')[0]\n"
            "two = [tf.config.LogicalDeviceConfiguration()] * 2\n"
            "tf.config.set_logical_device_configuration(cpu, two)\n"
            "assert hardware.count(hardware.detect(), 'CPU') == 2\n"
            "assert len(tf.config.list_logical_devices('CPU')) == 2\n",
        ]
    )
