"""Which GPUs TensorFlow is left with, and what they are called then: no device is touched."""

from __future__ import annotations

from typing import Any

import pytest
import tensorflow as tf

from tfaccel.errors import StrategyError
from tfaccel.strategies import process_settings


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes TensorFlow tell of GPUs, each divided into so many; returns what stays visible."""

    def of(*parts: int, started: bool = False) -> list[Any]:
        gpus = [f"gpu {i}" for i in range(len(parts))]
        shown = list(gpus)

        def show(devices: list[Any], kind: str) -> None:
            if started:
                raise RuntimeError
            shown[:] = devices

        divided = lambda d: [object()] * parts[gpus.index(d)] or None  # noqa: E731
        monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: list(shown))
        monkeypatch.setattr(tf.config, "get_logical_device_configuration", divided)
        monkeypatch.setattr(tf.config, "set_visible_devices", show)
        return shown

    return of


@pytest.mark.parametrize(
    ("parts", "requested", "left", "now"),
    [
        ((0, 0), ("GPU:0", "GPU:1"), [0, 1], ("GPU:0", "GPU:1")),
        ((0, 0, 0), ("GPU:0", "GPU:2"), [0, 2], ("GPU:0", "GPU:1")),
        ((0, 0, 0), ("GPU:2", "GPU:1"), [1, 2], ("GPU:1", "GPU:0")),
        ((2,), ("GPU:0", "GPU:1"), [0], ("GPU:0", "GPU:1")),
        ((2,), ("GPU:1",), [0], ("GPU:1",)),
        ((2, 2), ("GPU:3",), [1], ("GPU:1",)),
        ((0, 0), ("CPU:0", "CPU:1"), [], ("CPU:0", "CPU:1")),
        ((), ("CPU:0",), [], ("CPU:0",)),
    ],
)
def test_gpus_that_stay_are_numbered_anew(
    machine: Any, parts: tuple[int, ...], requested: tuple[str, ...], left: list[int], now: Any
) -> None:
    shown = machine(*parts)
    assert process_settings.restrict_visible_gpus(requested) == now
    assert shown == [f"gpu {i}" for i in left]


def test_devices_cannot_be_hidden_once_tensorflow_has_started(machine: Any) -> None:
    machine(0, 0, started=True)
    assert process_settings.restrict_visible_gpus(("GPU:0", "GPU:1")) == ("GPU:0", "GPU:1")
    with pytest.raises(StrategyError, match="GPU:1 was requested after TensorFlow had started"):
        process_settings.restrict_visible_gpus(("GPU:1",))


def test_memory_of_a_divided_gpu_does_not_grow(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(0, 2)
    grown = []
    monkeypatch.setattr(
        tf.config.experimental, "set_memory_growth", lambda gpu, on: grown.append((gpu, on))
    )
    process_settings._memory_growth()
    assert grown == [("gpu 0", True)]
