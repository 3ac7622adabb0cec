"""The front desk: one thin factory a file, and the registry of their names."""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from tfaccel.errors import StrategyError
from tfaccel.strategies.auto import Choice, choose
from tfaccel.strategies.options import Options, resolve

if TYPE_CHECKING:
    import tensorflow as tf

__all__ = ["FACTORIES", "NAMES", "Choice", "Options", "choose", "strategy"]

FACTORIES = {
    "one_device": "tfaccel.strategies.one_device",
    "mirrored": "tfaccel.strategies.mirrored",
    "multi_worker_mirrored": "tfaccel.strategies.multi_worker_mirrored",
    "tpu": "tfaccel.strategies.tpu",
    "model_parallel": "tfaccel.strategies.model_parallel",
}
NAMES = ("auto", *FACTORIES)

_REFUSED = {
    "parameter_server": "Keras 3 does not support ParameterServerStrategy",
    "central_storage": "Keras 3 does not support CentralStorageStrategy",
}


def strategy(name: str = "auto", **options: Any) -> tf.distribute.Strategy:
    """Makes the strategy that fits the hardware. Call it first, before TensorFlow is used.

    Args:
        name: one of `NAMES`.
        **options: see `Options`; one that is not given is read from ``TFACCEL_<OPTION>``.

    Returns:
        A `tf.distribute.Strategy`: build and compile a Keras model under its `scope()`.

    Raises:
        StrategyError: when hardware, cluster and options do not go together.
        ClusterError: when the cluster's description is wrong, or workers do not come.

    Example:
        with tfaccel.strategy("auto").scope():
            model = build_model()
            model.compile("adam", "mse")
        model.fit(x, y, batch_size=64)
    """
    from tfaccel import hardware, installed, onednn

    installed.check_before_import()
    if "tensorflow" not in sys.modules:
        onednn.prefer(os.environ)
    from tfaccel.cluster import resolve as find_cluster
    from tfaccel.distribute.model_parallel.mesh import MeshShape
    from tfaccel.strategies import describe, devices, request, settings

    name = os.environ.get("TFACCEL_STRATEGY", name) if name == "auto" else name
    _check(name)
    wanted = resolve(options, os.environ)
    here = hardware.detect()
    cluster = find_cluster(os.environ)
    number = len(wanted.devices) if isinstance(wanted.devices, tuple) else wanted.devices
    if name == "auto" and wanted.mesh is not None:
        choice = Choice("model_parallel", "a mesh was asked for")
    else:
        kind = wanted.device_type
        if isinstance(wanted.devices, tuple):
            kind = devices.kind_of(here, kind, wanted.devices).lower()
        choice = choose(name, here, cluster, number, kind)
    _check_mesh(choice.name, wanted)
    _check_frequency(choice.name, wanted)
    _check_ragged(choice.name, wanted)
    _check_executions(choice.name, wanted)
    _check_check(choice.name, wanted)
    kind = "tpu" if choice.name == "tpu" else wanted.device_type
    limit = wanted.devices or (1 if choice.name == "one_device" else None)
    if choice.name == "model_parallel" and limit is None:
        workers = cluster.size if cluster is not None else 1
        limit = MeshShape.devices_for(wanted.mesh, workers)
    # The cores of a TPU have no names before the factory has started it.
    names = devices.pick(here, kind, limit) if choice.name != "tpu" else ("TPU",)
    policy = settings.apply(wanted, here, names)
    factory = importlib.import_module(FACTORIES[choice.name])
    made: tf.distribute.Strategy = factory.make(request.Request(wanted, names, cluster))
    if wanted.wire is not None:
        from tfaccel.distribute import compression

        made.wire = compression.parse(wanted.wire)
    if wanted.ragged is not None:
        made.ragged = wanted.ragged
    if hasattr(made, "check"):
        made.check = wanted.check
    used = {o: getattr(made, o, getattr(wanted, o)) for o in ("communication", "ragged")}
    wanted = dataclasses.replace(wanted, **used)
    describe.remember(made, choice, names, cluster, policy, wanted)
    return made


def _check_mesh(name: str, wanted: Options) -> None:
    for option in ("mesh", "layouts"):
        if name != "model_parallel" and getattr(wanted, option) is not None:
            raise StrategyError(
                f"tfaccel: {option}={getattr(wanted, option)!r} was asked for with strategy "
                f"{name!r}, which has no mesh; use strategy 'model_parallel', or leave it out."
            )


def _check_frequency(name: str, wanted: Options) -> None:
    if wanted.wire is not None and wanted.local_steps > 1:
        raise StrategyError(
            f"tfaccel: wire={wanted.wire!r} and local_steps={wanted.local_steps} were asked for "
            "together, expected one of them: under local steps no gradient travels."
        )
    for option, usual in (
        ("wire", (None,)),
        ("accumulate", (None, "reduced")),
        ("local_steps", (1,)),
    ):
        value = getattr(wanted, option)
        if name not in ("mirrored", "multi_worker_mirrored") and value not in usual:
            raise StrategyError(
                f"tfaccel: {option}={value!r} was asked for with strategy {name!r}, which has no "
                "replicas of ours that reduce gradients; use 'mirrored' or "
                "'multi_worker_mirrored', or leave it out."
            )


def _check_ragged(name: str, wanted: Options) -> None:
    fits = {"one_device": ("exact",), "model_parallel": ("exact",), "tpu": ("pad", "drop")}
    possible = fits.get(name, (wanted.ragged,))
    if wanted.ragged is not None and wanted.ragged not in possible:
        raise StrategyError(
            f"tfaccel: ragged={wanted.ragged!r} was asked for with strategy {name!r}, expected "
            f"{' or '.join(map(repr, possible))}, or nothing."
        )


def _check_executions(name: str, wanted: Options) -> None:
    if name != "tpu" and wanted.steps_per_execution is not None:
        raise StrategyError(
            f"tfaccel: steps_per_execution={wanted.steps_per_execution} was asked for with "
            f"strategy {name!r}, expected strategy 'tpu'; give it to model.compile."
        )


def _check_check(name: str, wanted: Options) -> None:
    if name == "tpu" and wanted.check == "always":
        raise StrategyError(
            "tfaccel: check='always' was asked for with strategy 'tpu', whose first step is not "
            "compared; use 'mirrored' or 'multi_worker_mirrored', or leave it out."
        )


def _check(name: str) -> None:
    if name in _REFUSED:
        raise StrategyError(
            f"tfaccel: strategy {name!r} cannot be had ({_REFUSED[name]}), expected one of "
            f"{', '.join(NAMES)}."
        )
    if name not in NAMES:
        raise StrategyError(
            f"tfaccel: unknown strategy {name!r}, expected one of {', '.join(NAMES)}."
        )
