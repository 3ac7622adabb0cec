"""Selects the strategy, its options and its devices for a request, in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tfaccel.cluster.cluster import Cluster
from tfaccel.errors import StrategyError
from tfaccel.hardware import Device
from tfaccel.strategies import accepted_options, devices, options
from tfaccel.strategies.auto import Choice, choose
from tfaccel.strategies.options import Options

FACTORIES = {
    "one_device": "tfaccel.strategies.one_device",
    "mirrored": "tfaccel.strategies.mirrored",
    "multi_worker_mirrored": "tfaccel.strategies.multi_worker_mirrored",
    "tpu": "tfaccel.strategies.tpu",
    "model_parallel": "tfaccel.strategies.model_parallel",
}
"""The module of each strategy; it has `ACCEPTS`, the options it takes, and `make`."""

NAMES = ("auto", *FACTORIES)

_UNSUPPORTED = {
    "parameter_server": "Keras 3 does not support ParameterServerStrategy",
    "central_storage": "Keras 3 does not support CentralStorageStrategy",
}


@dataclass(frozen=True)
class Selection:
    """The strategy, options and devices that were selected for a request.

    Attributes:
        choice: the strategy's name, and why.
        options: all options.
        devices: the names of this process's devices to use; ``("TPU",)`` for the cores of a TPU,
            which have no names before it is started.
        cluster: the workers of this job, or None.
    """

    choice: Choice
    options: Options
    devices: tuple[str, ...]
    cluster: Cluster | None


def select(
    name: str | None,
    values: Mapping[str, Any],
    environ: Mapping[str, str],
    detected: Sequence[Device],
    cluster: Cluster | None,
) -> Selection:
    """Decides on strategy, options and devices. Used by `strategy`, flags and `tfaccel env`.

    Arguments in code take precedence over ``TFACCEL_STRATEGY`` and ``TFACCEL_<OPTION>``, even
    ``"auto"``; an empty variable counts as unset.

    Args:
        name: a strategy's name, or None where none was given.
        values: options by name; None counts as not given.
        environ: the environment.
        detected: the devices of this process.
        cluster: the workers of this job, or None.

    Raises:
        StrategyError: when the name, an option or a device is unknown or does not fit the others.
        LayoutError: when a mesh cannot be parsed.
    """
    name = requested_name(name, environ)
    requested = options.resolve(values, environ)
    named = isinstance(requested.devices, tuple)
    if name == "auto" and requested.mesh is not None:
        choice = Choice("model_parallel", "a mesh was requested")
    else:
        number = (
            len(requested.devices) if isinstance(requested.devices, tuple) else requested.devices
        )
        kind = requested.device_type
        if named:
            kind = devices.kind_of(detected, kind, requested.devices).lower()
        choice = choose(name, detected, cluster, number, kind)
    accepted_options.check(choice.name, FACTORIES, requested)
    return Selection(
        choice, requested, _devices(choice.name, requested, detected, cluster), cluster
    )


def requested_name(name: str | None, environ: Mapping[str, str]) -> str:
    """The strategy's name: the argument, else ``TFACCEL_STRATEGY``, else ``"auto"``.

    >>> requested_name(None, {"TFACCEL_STRATEGY": "mirrored"})
    'mirrored'
    >>> requested_name("auto", {"TFACCEL_STRATEGY": "mirrored"})
    'auto'
    """
    name = name or environ.get("TFACCEL_STRATEGY") or "auto"
    if name in _UNSUPPORTED:
        raise StrategyError(
            f"tfaccel: strategy {name!r} is unsupported ({_UNSUPPORTED[name]}); expected one of "
            f"{', '.join(NAMES)}."
        )
    if name not in NAMES:
        raise StrategyError(
            f"tfaccel: unknown strategy {name!r}; expected one of {', '.join(NAMES)}."
        )
    return name


def _devices(
    name: str, requested: Options, detected: Sequence[Device], cluster: Cluster | None
) -> tuple[str, ...]:
    from tfaccel.distribute.model_parallel.mesh import MeshShape

    if name == "tpu":
        return ("TPU",)
    limit = requested.devices or (1 if name == "one_device" else None)
    if name == "model_parallel" and limit is None:
        workers = cluster.size if cluster is not None else 1
        limit = MeshShape.devices_for(requested.mesh, workers)
    return devices.pick(detected, requested.device_type, limit)
