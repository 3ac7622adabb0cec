"""The options of a strategy: resolved once, from the argument, then the environment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from tfaccel import deprecated
from tfaccel.errors import StrategyError

_CHOICES = {
    "device_type": ("auto", "cpu", "gpu", "tpu"),
    "precision": ("float32", "mixed_bfloat16", "mixed_float16", "auto"),
    "communication": ("auto", "ring", "nccl", "mpi"),
    "gradient_accumulation": ("reduced", "local"),
    "partial_batch": ("exact", "pad", "drop"),
    "batch_norm": ("replica", "synchronized"),
    "rematerialization": ("full", "activations"),
    "input": ("global", "per_worker"),
    "check": ("auto", "always", "off"),
}
_BOOLEANS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


@dataclass(frozen=True)
class Options:
    """Options of every strategy. A strategy rejects those that do not apply to it.

    Attributes:
        devices: how many devices (of each worker) to use, or their names such as ``"GPU:0"``;
            None for all of the best kind. More CPUs than there are become logical ones.
        device_type: ``"auto"`` (a TPU, else GPUs, else CPUs), ``"cpu"``, ``"gpu"`` or ``"tpu"``.
        precision: Keras's global dtype policy; ``"auto"`` takes mixed_bfloat16 on TPUs and on
            GPUs from compute capability 8.0, mixed_float16 from 7.0, else float32; None keeps the
            policy.
        xla: compile clusters of operations with XLA on GPUs.
        memory_growth: allocate GPU memory as needed instead of all at the start.
        seed: seeds Python, NumPy and TensorFlow. None keeps their states; workers whose states
            differ then share a seed, so that all shuffle the same way.
        deterministic: only operations that are bit-identical in every run (slower on GPUs).
        communication: between devices and workers, ``"auto"``, ``"ring"``, ``"nccl"`` or, between
            workers alone, ``"mpi"``.
        gradient_compression: how gradients are sent, see `tfaccel.distribute.compression`:
            ``"bfloat16"``, ``"float16"``, ``"powersgd"`` or ``"powersgd:RANK"``; None for
            uncompressed.
        gradient_accumulation: what an optimizer's `gradient_accumulation_steps` accumulates:
            ``"reduced"``, the sums over replicas of every step, as Keras does; ``"local"``, each
            replica's own, summed in the steps that update: the same up to float order. None is
            ``"reduced"``.
        local_steps: steps of each replica between averagings (local SGD: different
            mathematics, see `tfaccel.distribute.local_steps`); 1 for none.
        partial_batch: how to handle a batch with fewer rows than the first: ``"exact"``, trained
            unchanged; ``"pad"``, padded with zero-weight rows, so that a step has one static shape,
            as TPUs require and XLA prefers; ``"drop"``, left out of training (evaluate and predict
            count every row). None is ``"pad"`` on TPUs, else ``"exact"``.
        batch_norm: which rows a `BatchNormalization` normalises on replicas: ``"replica"``, its
            replica's own, unless the layer has `synchronized=True`; ``"synchronized"``, all of the
            global batch in every such layer, as on one device and on a mesh.
        rematerialization: which layers made in the strategy's scope are computed again in the
            backward pass, instead of keeping what they computed (less memory, more time, the same
            numbers): ``"full"``, each of them, a custom layer with all that it calls;
            ``"activations"``, activation functions alone. As in a `keras.RematScope` of that mode;
            None for none.
        input: what a worker passes to `fit`: ``"global"``, the same global batches as all others,
            of which it takes its rows; ``"per_worker"``, its own part of each, of which the global
            batch is made (see `tfaccel.distribute.per_worker`).
        check: compare a model's first step with that of one device, and stop where they differ:
            on replicas over a few rows (`tfaccel.distribute.first_step_check`), on a mesh over the
            first batch (`tfaccel.distribute.model_parallel.mesh_check`). ``"auto"``: on replicas,
            models with custom components (a step, loss, metric, layer or activation); on a mesh,
            all models whose step one device can take in 8 GiB; ``"always"``: every model;
            ``"off"``. Not on TPUs.
        steps_per_execution: how many steps a TPU runs in one call of a model that was compiled
            without a number; None chooses up to 32 (see
            `tfaccel.distribute.steps_per_execution`), 1 shows each step.
        data_service: `host:port` of the dispatcher of a `tf.data` service, whose workers compute
            rows (`tfaccel.distribute.data_service`); None computes them in this process.
        profile: the first and the last step of `fit` of which every worker writes a profile for
            TensorBoard (`tfaccel.distribute.profile`), counted from 1, both included, such as
            ``"10:20"``; None for none.
        profile_dir: the directory that it is written to.
        start_timeout: seconds to wait for all workers to arrive.
        collective_timeout: seconds after which an all-reduce gives up on a silent worker; more
            than the slowest step takes. None waits for TensorFlow's heartbeat.
        stall_timeout: seconds without progress, at least, and three times the longest step seen,
            before the worker that holds up the others is named and the job ends
            (`tfaccel.cluster.stalls`); 0 to disable.
        mesh: axes and sizes of a model-parallel mesh, such as ``"batch=2,model=4"``; an axis of -1
            takes the devices that the others leave.
        layouts: how variables are sharded over the mesh: ``"auto"``, ``"fully_sharded"``, or a
            `LayoutMap`, a `keras.distribution.LayoutMap` or a dict from regular expressions of
            variable paths to axes. None is ``"auto"``.
        tpu: name or address of a TPU; ``"local"`` on a TPU VM; None finds it.
        tpu_zone: Google Cloud's zone of a TPU with a name; None for the zone of this machine.
        tpu_project: its project, likewise.
    """

    devices: int | tuple[str, ...] | None = None
    device_type: str = "auto"
    precision: str | None = None
    xla: bool = False
    memory_growth: bool = True
    seed: int | None = None
    deterministic: bool = False
    communication: str = "auto"
    gradient_compression: str | None = None
    gradient_accumulation: str | None = None
    local_steps: int = 1
    partial_batch: str | None = None
    batch_norm: str = "replica"
    rematerialization: str | None = None
    input: str = "global"
    check: str = "auto"
    steps_per_execution: int | None = None
    data_service: str | None = None
    profile: tuple[int, int] | None = None
    profile_dir: str = "profile"
    start_timeout: float = 300.0
    collective_timeout: float | None = None
    stall_timeout: float = 60.0
    mesh: Any = None
    layouts: Any = None
    tpu: str | None = None
    tpu_zone: str | None = None
    tpu_project: str | None = None


def resolve(requested: Mapping[str, Any], environ: Mapping[str, str]) -> Options:
    """Fills in missing options: first from ``TFACCEL_<OPTION>``, then with the default.

    Args:
        requested: options by name; None counts as not given.
        environ: the environment.

    Raises:
        StrategyError: for an option that does not exist, a value it cannot have, or one that
            is given under its deprecated name too.

    >>> resolve({"devices": None}, {"TFACCEL_DEVICES": "2"}).devices
    2
    >>> resolve({"devices": "GPU:0,GPU:1"}, {}).devices
    ('GPU:0', 'GPU:1')
    """
    requested = deprecated.renamed(requested, deprecated.OPTIONS)
    environ = deprecated.renamed(environ, deprecated.VARIABLES)
    known = {f.name for f in fields(Options)}
    for name in requested:
        if name not in known:
            raise StrategyError(
                f"tfaccel: unknown option {name!r}; expected one of {', '.join(sorted(known))}."
            )
    values: dict[str, Any] = {}
    for name in known:
        source, value = name, requested.get(name)
        if value is None:
            source = f"TFACCEL_{name.upper()}"
            value = environ.get(source) or None
        if value is not None:
            values[name] = _parse(name, value, source)
    return Options(**values)


def _parse(name: str, value: Any, source: str) -> Any:
    if name in _CHOICES:
        if value not in _CHOICES[name]:
            raise _wrong(source, value, f"one of {', '.join(_CHOICES[name])}")
        return value
    if name == "devices":
        return _parse_devices(value, source)
    if name in ("xla", "memory_growth", "deterministic"):
        if isinstance(value, bool):
            return value
        if str(value).lower() not in _BOOLEANS:
            raise _wrong(source, value, "true or false")
        return _BOOLEANS[str(value).lower()]
    if name == "gradient_compression":
        if not re.fullmatch(r"bfloat16|float16|powersgd(:[1-9]\d*)?", str(value)):
            raise _wrong(source, value, "bfloat16, float16, powersgd or powersgd:RANK")
        return value
    if name == "data_service":
        if not re.fullmatch(r"[^\s/]+:\d+", str(value)):
            raise _wrong(source, value, "an address such as 127.0.0.1:5000")
        return value
    if name == "profile":
        return _parse_profile(value, source)
    if name in ("local_steps", "steps_per_execution"):
        steps = _number(value, int)
        if steps is None or isinstance(value, (bool, float)) or steps < 1:
            raise _wrong(source, value, "a number of steps of at least 1")
        return steps
    if name in ("start_timeout", "collective_timeout", "stall_timeout", "seed"):
        number = _number(value, int if name == "seed" else float)
        if number is None or not number >= 0:  # NaN too
            raise _wrong(source, value, "a number of at least 0")
        return number
    return value


def _parse_devices(value: Any, source: str) -> int | tuple[str, ...]:
    if isinstance(value, str):
        number = _number(value, int)
        names = tuple(n.strip().upper() for n in value.split(",") if n.strip())
        value = names if number is None else number
    elif isinstance(value, (list, tuple)):
        value = tuple(str(name).upper() for name in value)
    if isinstance(value, bool) or not isinstance(value, (int, tuple)):
        raise _wrong(source, value, "a number of devices, or names such as GPU:0,GPU:1")
    if isinstance(value, int):
        if value < 1:
            raise _wrong(source, value, "at least 1")
        return value
    plain = tuple(name.removeprefix("/").removeprefix("DEVICE:") for name in value)
    for name in plain:
        kind, _, index = name.partition(":")
        if kind not in ("CPU", "GPU", "TPU") or not index.isdigit():
            raise _wrong(source, name, "a number of devices, or names such as GPU:0,GPU:1")
    if not plain or len(set(plain)) != len(plain) or len({n[:3] for n in plain}) != 1:
        raise _wrong(source, ",".join(plain), "different devices of one kind, such as GPU:0,GPU:1")
    return plain


def _parse_profile(value: Any, source: str) -> tuple[int, int]:
    if isinstance(value, (list, tuple)):
        value = ":".join(map(str, value))
    first, _, last = str(value).partition(":")
    steps = _number(first, int), _number(last, int)
    if None in steps or not 1 <= steps[0] <= steps[1]:
        raise _wrong(source, value, "a first and a last step, counted from 1, such as 10:20")
    return steps


def _number(value: Any, kind: type) -> Any:
    try:
        return kind(value)
    except (TypeError, ValueError):
        return None


def _wrong(source: str, value: Any, expected: str) -> StrategyError:
    return StrategyError(f"tfaccel: {source} is {value!r}; expected {expected}.")
