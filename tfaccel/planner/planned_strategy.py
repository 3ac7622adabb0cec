"""`tfaccel.strategy`: for a model that does not fit as replicas, its plan decides the split."""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tfaccel import strategies
from tfaccel.cluster.cluster import Cluster
from tfaccel.errors import StrategyError, TfaccelError
from tfaccel.hardware import Device
from tfaccel.strategies import selection
from tfaccel.strategies.auto import Choice
from tfaccel.strategies.selection import Selection

if TYPE_CHECKING:
    import tensorflow as tf

    from tfaccel.planner.device_catalogue import Machines
    from tfaccel.planner.models import Source
    from tfaccel.planner.plan import Plan


@dataclass(frozen=True)
class Planned:
    """What a plan recommends.

    Attributes:
        name: a strategy's name.
        options: more options for it.
        reason: why, in a sentence.
    """

    name: str
    options: Mapping[str, str]
    reason: str


def strategy(
    name: str | None = None,
    *,
    model: Source | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> tf.distribute.Strategy:
    """Creates the strategy that fits the hardware. Call it first, before TensorFlow is used.

    Args:
        name: one of `tfaccel.strategies.NAMES`; None takes ``TFACCEL_STRATEGY``, else ``"auto"``.
        model: for ``"auto"``: a function that builds and compiles the model, or what else
            `tfaccel.plan` takes. If it does not fit on the devices as replicas, it is split over
            them; if it does not fit so either, its layers are computed again backwards.
        batch_size: rows of the global batch that `model` is trained with.
        **options: see `tfaccel.strategies.Options`; one that is not given is read from
            ``TFACCEL_<OPTION>``.

    Returns:
        A `tf.distribute.Strategy`: build and compile a Keras model under its `scope()`.

    Raises:
        StrategyError: when hardware, cluster and options are incompatible, or the model cannot
            fit.
        ClusterError: when the cluster's description is wrong, or workers do not arrive.

    Example:
        ```python
        with tfaccel.strategy("auto").scope():
            model = build_model()
            model.compile("adam", "mse")
        model.fit(x, y, batch_size=64)
        ```
    """
    if model is None and batch_size is None:
        return strategies.strategy(name, **options)
    selection.requested_name(name, os.environ)
    return strategies.create(functools.partial(select, model, batch_size, name, options))


def select(
    model: Source | None,
    batch_size: int | None,
    name: str | None,
    values: Mapping[str, Any],
    environ: Mapping[str, str],
    detected: Sequence[Device],
    cluster: Cluster | None,
) -> Selection:
    """Selects for a model, on all workers alike.

    The speed of the devices does not count: of what fits the simplest is taken, replicas before
    meshes. On one device and on TPUs there is nothing to choose.

    Args:
        model: as `tfaccel.plan` takes it.
        batch_size: rows of the global batch.
        name: as in `selection.select`, like the others.
        values: as there.
        environ: as there.
        detected: as there.
        cluster: as there.

    Raises:
        StrategyError: when the model fits in no way, or cannot be planned.
    """
    if model is None or batch_size is None:
        given = "batch_size= without model=" if model is None else "model= without batch_size="
        raise StrategyError(
            f"tfaccel: {given} was given; expected both, a builder and the global batch's rows."
        )
    contradicts = f"strategy {name!r}" if name not in (None, "auto") else "a mesh"
    if contradicts != "a mesh" or values.get("mesh") is not None:
        raise StrategyError(
            f"tfaccel: {contradicts} was requested together with model=; expected 'auto' alone, "
            "which decides by the model, or what was requested without model=."
        )
    found = selection.select(name, values, environ, detected, cluster)
    if selection.requested_name(name, environ) != "auto" or found.options.mesh is not None:
        return found  # the environment has decided
    machines = _machines(found)
    if machines is None:
        return found
    precision = _precision(found)
    again = found.options.rematerialization in (None, "full")
    planned = _in_child(lambda: _recommend(model, machines, batch_size, precision, again))
    values = {**values, **planned.options}
    found = selection.select(planned.name, values, environ, detected, cluster)
    return dataclasses.replace(found, choice=Choice(planned.name, planned.reason))


def _machines(found: Selection) -> Machines | None:
    from tfaccel.planner import device_catalogue, local_devices

    workers = found.cluster.size if found.cluster is not None else 1
    count = len(found.devices)
    if workers * count == 1 or found.choice.name == "tpu":
        return None
    if found.devices[0].startswith("GPU"):
        memory = local_devices.gpu_memory()
        device = device_catalogue.Device(
            "GPU", "gpu", memory, memory, None, None, None, {}, "this machine", ""
        )
    else:  # logical CPUs share the memory of their host
        host = device_catalogue.here()
        device = dataclasses.replace(host, usable=host.usable // count)
    return device_catalogue.Machines(device, workers, count)


def _precision(found: Selection) -> str:
    if found.options.precision not in (None, "auto"):
        return str(found.options.precision)
    import keras

    return str(keras.config.dtype_policy().name)


def _recommend(
    model: Source, machines: Machines, batch_size: int, precision: str, rematerializes: bool = True
) -> Planned:
    """Of the ways that fit the first, as the model is before those with layers computed again."""
    from tfaccel.planner.plan import plan

    found = plan(model, machines, batch_size, precision=precision)
    # Simple ones come first. The first one of all uses one device.
    all_devices = [one for one in found.estimates if one.candidate.devices == machines.count]
    as_it_is = [one for one in all_devices if one.candidate.is_plain]
    again = [one for one in all_devices if one.candidate.rematerialized] if rematerializes else []
    again = [one for one in again if one.candidate.accumulate == 1]
    known = [one for one in as_it_is if one.peak is not None]
    best = next((one for one in (*known, *again) if one.fits), None)
    if best is not None:
        reason = f"the simplest of {len(as_it_is)} ways in which it fits"
        if best.candidate.rematerialized:
            reason = "the simplest in which it fits, with layers that are computed again"
    else:
        tight = [one for one in known if one.fits is None]
        if known and not tight:
            raise StrategyError(f"tfaccel: strategy 'auto' for {found.target}: {_no(found)}")
        best = min(tight, key=lambda one: one.peak or 0) if tight else as_it_is[0]
        reason = "its memory may just be enough, and the others take more"
        if not tight:
            reason = f"its memory is not known: {best.why_not}"
    candidate = best.candidate
    options = {}
    if candidate.mesh is not None:
        options = {"mesh": str(candidate.mesh), "layouts": str(candidate.layouts)}
    if candidate.rematerialized:
        options["rematerialization"] = "full"
    return Planned(candidate.strategy, options, f"planned for {found.target}: {reason}")


def _no(found: Plan) -> str:
    changes = "; or ".join(one.change for one in found.advice)
    return f"{found.reason}" + (f" What makes it fit: {changes}." if changes else "")


def _in_child(work: Callable[[], Planned]) -> Planned:
    """Calls it in a copy of this process, whose devices cannot be configured any more after it.

    Where TensorFlow has started already no copy can be made, and none is needed.
    """
    from tfaccel.distribute import _private

    if sys.platform == "win32" or _private.has_started():
        return work()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def send() -> None:
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")
        try:
            sender.send(work())
        except TfaccelError as error:
            sender.send(error)
        except Exception as error:
            sender.send(
                StrategyError(
                    f"tfaccel: the model could not be planned ({type(error).__name__}: {error}), "
                    "expected a function that builds and compiles a Keras model; without model= "
                    "strategy 'auto' goes by the devices alone."
                )
            )

    child = context.Process(target=send, daemon=True)
    child.start()
    sender.close()
    try:
        answer: Any = receiver.recv()
    except EOFError:
        answer = StrategyError(
            f"tfaccel: the process that plans the model ended (exit code {child.exitcode}), "
            "expected a plan; without model= strategy 'auto' goes by the devices alone."
        )
    child.join()
    if isinstance(answer, Exception):
        raise answer
    assert isinstance(answer, Planned)
    return answer
