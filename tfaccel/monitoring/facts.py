"""Facts read once per `fit`: the worker, its devices, and what can be measured."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import keras
import tensorflow as tf

from tfaccel.monitoring.peaks import peak_flops
from tfaccel.monitoring.pipeline import InputSource
from tfaccel.monitoring.run import Run


def devices_of(strategy: Any) -> tuple[str, ...]:
    """The names of this process's devices: ``CPU:0``."""
    if strategy is tf.distribute.get_strategy() and not tf.distribute.has_strategy():
        return ("GPU:0",) if tf.config.list_logical_devices("GPU") else ("CPU:0",)
    names = getattr(strategy, "_devices", None) or strategy.extended.worker_devices
    return tuple(":".join(str(name).rpartition("/")[2].split(":")[-2:]) for name in names)


def device_description(devices: tuple[str, ...]) -> str:
    """The vendor's name of the devices; for a processor its model, where Linux reports it."""
    if not devices or devices[0].startswith("CPU"):
        return _processor()
    kind = devices[0].partition(":")[0]
    physical = tf.config.get_visible_devices(kind)
    if not physical or kind != "GPU":
        return kind
    return str(tf.config.experimental.get_device_details(physical[0]).get("device_name", kind))


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = (line.partition(":")[2].strip() for line in file if line.startswith("model n"))
            return next(names, "CPU")
    except OSError:
        return "CPU"


def dtype_of(model: keras.Model) -> str:
    """The dtype in which a model's products are computed."""
    return str(model.dtype_policy.compute_dtype)


def peak_of(
    devices: tuple[str, ...], device: str, model: keras.Model, stated: float | None
) -> float | None:
    """Peak floating-point operations per second of all devices together.

    Args:
        devices: of this process.
        device: what they are.
        model: that is trained.
        stated: the user's figure for one device, in TFLOP/s.
    """
    one = stated * 1e12 if stated is not None else peak_flops(device, dtype_of(model))
    return None if one is None else one * max(1, len(devices))


def run_of(
    strategy: Any,
    number: int,
    devices: tuple[str, ...],
    device: str,
    source: InputSource,
    not_measured: Sequence[str],
) -> Run:
    """The facts that do not change while a `fit` runs.

    Args:
        strategy: of the model.
        number: of the run.
        devices: of this process.
        device: what they are.
        source: of the batches.
        not_measured: why figures are missing.
    """
    cluster = getattr(strategy, "cluster", None)
    rank, size = (0, 1) if cluster is None else (cluster.rank, cluster.size)
    return Run(
        run=number,
        worker=rank,
        workers=size,
        name=socket.gethostname() if cluster is None else cluster.workers[rank],
        strategy=_name(strategy),
        devices=devices,
        device=device,
        communication=str(getattr(strategy, "communication", "")) if size > 1 else "",
        input=source.name,
        input_candidates=source.candidates,
        input_advice=source.advice,
        not_measured=tuple(not_measured),
    )


def of_all_workers(run: Run, strategy: Any) -> tuple[Run, ...]:
    """A worker's own facts, by rank, for all: only their names differ."""
    cluster = getattr(strategy, "cluster", None)
    names = (run.name,) if cluster is None else cluster.workers
    return tuple(replace(run, worker=rank, name=name) for rank, name in enumerate(names))


def _name(strategy: Any) -> str:
    """The strategy's class; the option's name where that is TensorFlow's hidden default."""
    name = type(strategy).__name__
    return "one_device" if name.startswith("_") else name
