"""What can be asked of a strategy: resolved once, from the argument, then the environment."""

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
    "check": ("auto", "always", "off"),
}
_BOOLEANS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


@dataclass(frozen=True)
class Options:
    """Options of every strategy. A strategy for which one makes no sense refuses it.

    Attributes:
        devices: how many devices (of each worker) to use, or their names such as ``"GPU:0"``;
            None for all of the best kind. More CPUs than there are become logical ones.
        device_type: ``"auto"`` (a TPU, else GPUs, else CPUs), ``"cpu"``, ``"gpu"`` or ``"tpu"``.
        precision: Keras's global dtype policy; ``"auto"`` takes mixed_bfloat16 on TPUs and on
            GPUs from compute capability 8.0, mixed_float16 from 7.0, else float32; None leaves
            the policy as it is.
        xla: compile clusters of operations with XLA on GPUs.
        memory_growth: let GPU memory grow with need instead of taking it all at the start.
        seed: seeds Python, NumPy and TensorFlow. None leaves them; workers whose states differ
            then agree on a seed, so that all shuffle alike.
        deterministic: only operations that give the same bits in every run (slower on GPUs).
        communication: between devices and workers, ``"auto"``, ``"ring"``, ``"nccl"`` or, between
            workers alone, ``"mpi"``.
        gradient_compression: how gradients are sent, see `tfaccel.distribute.compression`:
            ``"bfloat16"``, ``"float16"``, ``"powersgd"`` or ``"powersgd:RANK"``; None as they are.
        gradient_accumulation: what an optimizer's `gradient_accumulation_steps` accumulates:
            ``"reduced"``, the sums over replicas of every step, as Keras does; ``"local"``, each
            replica's own, summed in the steps that update: the same up to float order. None is
            ``"reduced"``.
        local_steps: steps that each replica takes alone before all are averaged (local SGD: other
            mathematics, see `tfaccel.distribute.local_steps`); 1 for none.
        partial_batch: what becomes of a batch with fewer rows than the first: ``"exact"``, trained
            as it is; ``"pad"``, filled up with copies of rows that count for nothing, so that a
            step has one static shape, which a TPU needs and XLA likes; ``"drop"``, left out of
            training (evaluate and predict count every row). None is ``"pad"`` on TPUs, else
            ``"exact"``.
        check: compare a model's first step with that of one device, and stop where they differ:
            on replicas over a few rows (`tfaccel.distribute.check`), on a mesh over the first batch
            (`tfaccel.distribute.model_parallel.mesh_check`). ``"auto"``: on replicas models that
            have a custom step, loss, metric or layer, on a mesh all whose step one device can take
            in 8 GiB; ``"always"``: every model; ``"off"``. Not on TPUs.
        steps_per_execution: how many steps a TPU runs in one call of a model that was compiled
            without a number; None chooses up to 32 (see `tfaccel.distribute.executions`), 1 shows
            each step.
        start_timeout: seconds to wait for all workers to arrive.
        collective_timeout: seconds after which an all-reduce gives up on a silent worker; more
            than the slowest step takes. None waits for TensorFlow's heartbeat.
        mesh: axes and sizes of a model-parallel mesh, such as ``"batch=2,model=4"``; an axis of -1
            takes the devices that the others leave.
        layouts: how a model lies on the mesh: ``"auto"``, ``"fully_sharded"``, or a `LayoutMap`, a
            `keras.distribution.LayoutMap` or a dict from regular expressions of variable paths to
            axes. None is ``"auto"``.
        tpu: name or address of a TPU; ``"local"`` on a TPU VM; None finds it.
        tpu_zone: Google Cloud's zone of a TPU with a name; None for that of this machine.
        tpu_project: its project, the same.
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
    check: str = "auto"
    steps_per_execution: int | None = None
    start_timeout: float = 300.0
    collective_timeout: float | None = None
    mesh: Any = None
    layouts: Any = None
    tpu: str | None = None
    tpu_zone: str | None = None
    tpu_project: str | None = None


def resolve(given: Mapping[str, Any], environ: Mapping[str, str]) -> Options:
    """Fills in what was not given: first from ``TFACCEL_<OPTION>``, then with the default.

    Args:
        given: options by name; None counts as not given.
        environ: the environment.

    Raises:
        StrategyError: for an option that does not exist, a value it cannot have, or one that
            is given under its deprecated name too.

    >>> resolve({"devices": None}, {"TFACCEL_DEVICES": "2"}).devices
    2
    >>> resolve({"devices": "GPU:0,GPU:1"}, {}).devices
    ('GPU:0', 'GPU:1')
    """
    given = deprecated.renamed(given, deprecated.OPTIONS)
    environ = deprecated.renamed(environ, deprecated.VARIABLES)
    known = {f.name for f in fields(Options)}
    for name in given:
        if name not in known:
            raise StrategyError(
                f"tfaccel: unknown option {name!r}, expected one of {', '.join(sorted(known))}."
            )
    values: dict[str, Any] = {}
    for name in known:
        source, value = name, given.get(name)
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
    if name in ("local_steps", "steps_per_execution"):
        steps = _number(value, int)
        if steps is None or isinstance(value, (bool, float)) or steps < 1:
            raise _wrong(source, value, "a number of steps of at least 1")
        return steps
    if name in ("start_timeout", "collective_timeout", "seed"):
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


def _number(value: Any, kind: type) -> Any:
    try:
        return kind(value)
    except (TypeError, ValueError):
        return None


def _wrong(source: str, value: Any, expected: str) -> StrategyError:
    return StrategyError(f"tfaccel: {source} is {value!r}, expected {expected}.")
