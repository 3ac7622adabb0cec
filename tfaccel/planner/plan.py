"""`tfaccel.plan`: does a model fit on some devices, how should it be split, how fast is a step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tfaccel.errors import StrategyError
from tfaccel.planner import advice, run_command
from tfaccel.planner.candidates import Candidate, candidates
from tfaccel.planner.candidates import precisions as precisions_of
from tfaccel.planner.device_catalogue import Machines
from tfaccel.planner.estimate import Estimate, estimate
from tfaccel.planner.models import Models, Source
from tfaccel.planner.prices import price


@dataclass(frozen=True)
class Plan:
    """The answer for one model on some machines.

    Attributes:
        target: what was planned, in words.
        machines: planned for.
        batch: rows of the global batch.
        estimates: one per candidate, in the order of the table.
        recommended: the best one; None where none fits.
        reason: why, in a sentence.
        command: the line that runs it; "" where there is nothing to run.
        advice: single changes that make a candidate fit, where none does.
        notes: what was assumed.
    """

    target: str
    machines: Machines
    batch: int
    estimates: tuple[Estimate, ...]
    recommended: Estimate | None
    reason: str
    command: str
    advice: tuple[advice.Advice, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-serializable data; bytes, seconds and US dollars."""
        return {
            "target": self.target,
            "devices": str(self.machines),
            "device": dataclasses.asdict(self.machines.device),
            "batch": self.batch,
            "reason": self.reason,
            "command": self.command,
            "notes": self.notes,
            "candidates": [self._priced(one) for one in self.estimates],
            "recommended": self._priced(self.recommended) if self.recommended is not None else None,
            "advice": [
                {"change": one.change, "command": one.command, **as_dict(one.estimate)}
                for one in self.advice
            ],
        }

    def _priced(self, one: Estimate) -> dict[str, Any]:
        found = price(one, self.machines.device, self.batch)
        return as_dict(one) | {"price": dataclasses.asdict(found) if found is not None else None}


def plan(
    model: Source,
    devices: str | Machines,
    batch_size: int,
    *,
    precision: str | None = None,
    input_shape: Sequence[int] | None = None,
    dtype: str = "float32",
    device_file: str | None = None,
) -> Plan:
    """Plans the training of a model, without allocating or running anything.

    Args:
        model: a function that builds a Keras model, ``path.py:function``, a ``.keras`` file, or a
            model, which is rebuilt from its configuration.
        devices: such as ``"8xH100"``, ``"2x4xA100"`` (two hosts of four), ``"v5e-8"`` or
            ``"4xcpu"``; or such machines themselves.
        batch_size: rows of the global batch.
        precision: plans only this one, such as ``"mixed_bfloat16"``; None plans float32 and the
            faster one of the device, and recommends float32 where that fits.
        input_shape: of one row, for a model with unknown input shape.
        dtype: of that input.
        device_file: a TOML file with more devices.

    Returns:
        All candidates, the one recommended, and what would make the model fit where nothing does.

    Raises:
        StrategyError: when devices, batch or model are invalid.
        InputError: when the model's input has unknown sizes.

    Example:
        ```python
        found = tfaccel.plan(build_model, devices="8xH100", batch_size=512)
        print(found.reason, found.command)
        ```
    """
    from tfaccel.planner import device_catalogue

    if batch_size < 1:
        raise StrategyError(f"tfaccel: a batch of {batch_size} was to be planned, expected rows.")
    machines = devices
    if isinstance(machines, str):
        machines = device_catalogue.parse(machines, device_catalogue.catalogue(device_file))
    chosen = [precision] if precision is not None else precisions_of(machines.device)
    together = machines.count > 1 and machines.device.kind != "tpu"
    rows = _rows(batch_size, machines)
    models = Models(model, rows, input_shape, dtype, together=together)
    notes: tuple[str, ...] = ()
    if models.has_own_precision and precision is None:
        chosen = ["float32"]
        notes = ("its layers have a precision of their own, and no other was planned",)
    listed = list(candidates(machines, chosen))
    found = tuple(estimate(one, batch_size, machines, models) for one in listed)
    plain = found
    found += tuple(advice.eased(plain, batch_size, machines, models))
    found = tuple(sorted(found, key=lambda one: chosen.index(one.candidate.precision)))
    notes += models.variant(chosen[0], listed[0].mesh is None).notes
    notes += models.repetition
    named = target_name(model)
    best, reason = recommend(found, machines)
    changes: tuple[advice.Advice, ...] = ()
    command = ""
    if best is not None:
        command = run_command.command(named, best.candidate, machines, batch_size)
    if not any(one.fits for one in plain) and any(one.peak is not None for one in plain):
        changes = tuple(advice.advise(plain, batch_size, machines, models, named))
    return Plan(named, machines, batch_size, found, best, reason, command, changes, notes)


def recommend(found: Sequence[Estimate], machines: Machines) -> tuple[Estimate | None, str]:
    """The recommended candidate, and the reason.

    Of those that fit, the fastest one at the first precision at which any fits. If rates are
    unknown, the first one in the table that uses all devices: simple ones come first there.
    """
    fitting = [one for one in found if one.fits]
    if not fitting:
        known = [one for one in found if one.peak is not None]
        if not known:
            return None, f"not known is {found[0].why_not}."
        least = min(known, key=lambda one: one.peak or 0)
        assert least.peak is not None
        short = least.peak - machines.device.usable
        missing = f"misses {size(short)} of" if short > 0 else f"leaves {size(-short)} of"
        return None, (
            f"nothing fits{' for sure' if short <= 0 else ''}: {least.candidate.name} in "
            f"{least.candidate.precision}, which takes least, {missing} "
            f"{size(machines.device.usable)} on each device."
        )
    first = fitting[0].candidate.precision
    same = [one for one in fitting if one.candidate.precision == first]
    if any(one.time is None for one in same):
        best = next((one for one in same if one.candidate.devices == machines.count), same[0])
        return best, (
            f"{best.candidate.name} is the simplest that fits in {first} and uses all devices; how "
            f"fast a {machines.device.name} is, is not known."
        )
    best = min(same, key=_seconds)
    second = min((one for one in same if one is not best), key=_seconds, default=None)
    if second is None:
        return best, f"{best.candidate.name} fits in {first}, and nothing else does."
    longer = _seconds(second) / _seconds(best)
    at = "at the rates of the catalogue"
    if machines.timer is not None:
        at = "as its operations were measured"
    return best, (
        f"{best.candidate.name} fits in {first} and its step is the shortest {at}: that of "
        f"{second.candidate.name}, the next, takes {longer:.2f} times as long."
    )


def _seconds(one: Estimate) -> float:
    assert one.time is not None
    return one.time.total


def size(number: float) -> str:
    """Formats bytes.

    >>> size(3 << 29), size(5 << 20), size(300)
    ('1.50 GiB', '5.0 MiB', '0.3 KiB')
    """
    if abs(number) >= 1 << 30:
        return f"{number / (1 << 30):.2f} GiB"
    return f"{number / (1 << 20):.1f} MiB" if abs(number) >= 1 << 20 else f"{number / 1024:.1f} KiB"


def as_dict(one: Estimate) -> dict[str, Any]:
    """An estimate as JSON."""
    found = dataclasses.asdict(one)
    candidate: Candidate = one.candidate
    found["candidate"] = {
        "name": candidate.name,
        "strategy": candidate.strategy,
        "devices": candidate.devices,
        "hosts": candidate.hosts,
        "precision": candidate.precision,
        "mesh": str(candidate.mesh) if candidate.mesh is not None else None,
        "layouts": candidate.layouts,
        "accumulate": candidate.accumulate,
        "rematerialized": candidate.rematerialized,
    }
    if one.time is not None:
        found["time"] |= {"total": one.time.total, "bound": one.time.bound}
    return found


def target_name(model: Any) -> str:
    """The name of a plan's model."""
    if isinstance(model, str):
        return model
    return str(getattr(model, "name", None) or getattr(model, "__name__", type(model).__name__))


def _rows(batch: int, machines: Machines) -> tuple[int, int]:
    """The minimum rows of a step, and the maximum: a number unlikely to equal another size.

    One row is not enough: broadcasting along it is indistinguishable.
    """
    most = max(batch, 3)
    while any(most % n == 0 for n in range(2, math.isqrt(most) + 1)):
        most += 1
    return max(2, min(-(-batch // machines.count), most // 2)), most
