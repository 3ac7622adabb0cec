"""Single changes that make a model fit, each planned again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import keras

from tfaccel.errors import StrategyError
from tfaccel.planner import run_command
from tfaccel.planner.block_places import UnevenError
from tfaccel.planner.candidates import Candidate, candidates
from tfaccel.planner.device_catalogue import Machines
from tfaccel.planner.estimate import Estimate, estimate, may_fit
from tfaccel.planner.models import Models

_MOST_DEVICES = 1024


@dataclass(frozen=True)
class Advice:
    """A change that makes a candidate fit.

    Attributes:
        change: in words.
        estimate: with the change.
        command: the line that runs it.
    """

    change: str
    estimate: Estimate
    command: str


def advise(
    found: Sequence[Estimate], batch: int, machines: Machines, models: Models, target: str
) -> Iterator[Advice]:
    """The smallest change of each kind that makes a candidate fit, if any.

    Args:
        found: all candidates, none of which fits.
        batch: rows of the global batch.
        machines: what they are for.
        models: makes the model's variants.
        target: what is planned, for its command line.
    """
    known = [one for one in found if one.peak is not None]
    least = min(known, key=lambda one: one.needed).candidate
    rows = _batch(least, batch, machines, models)
    if rows:
        better = estimate(least, rows, machines, models)
        change = f"a global batch of {rows} in place of {batch}, {least.name}, {least.precision}"
        yield Advice(change, better, run_command.command(target, least, machines, rows))
    again = _rematerialized(least, batch, machines, models)
    if again is not None:
        change = f"rematerialization='full', {least.name}, {least.precision}"
        line = run_command.command(target, again.candidate, machines, batch)
        yield Advice(change, again, line)
    accumulated = _accumulation(least, batch, machines, models)
    if accumulated is not None:
        change = (
            f"compile with gradient_accumulation_steps={accumulated.candidate.accumulate} and feed "
            f"batches of {batch // accumulated.candidate.accumulate}, {least.name}, "
            f"{least.precision}"
        )
        line = run_command.command(target, accumulated.candidate, machines, batch)
        yield Advice(change, accumulated, line)
    more = _devices(batch, machines, models, least.precision)
    if more is not None:
        larger, better = more
        change = f"{larger} in place of {machines}, {better.candidate.name}, {least.precision}"
        yield Advice(change, better, run_command.command(target, better.candidate, larger, batch))


def eased(
    found: Sequence[Estimate], batch: int, machines: Machines, models: Models
) -> Iterator[Estimate]:
    """Further candidates: those that do not fit, with what makes them fit.

    That is rematerialization, or the fewest steps of gradient accumulation, or both where neither
    is enough. None is traced if the variables alone, plus one per gradient, fill the device, and
    rematerialization is only where it makes the candidate fit that takes least.

    Args:
        found: all candidates, as they are.
        batch: rows of the global batch.
        machines: what they are for.
        models: makes the model's variants.
    """
    close = [
        one
        for one in found
        if not one.fits
        and one.peak is not None
        and one.bytes_between_steps + one.all_gradients <= machines.device.usable
    ]
    if not close:
        return
    accumulated = [_accumulation(one.candidate, batch, machines, models) for one in close]

    def again(i: int) -> Estimate | None:
        """Rematerialized: as it is, or accumulated where that alone does not help."""
        alone = accumulated[i] is not None
        return _rematerialized(close[i].candidate, batch, machines, models, accumulates=not alone)

    least = min(range(len(close)), key=lambda i: close[i].needed)
    rematerializes = again(least) is not None
    for i, other in enumerate(accumulated):
        if rematerializes and (found_again := again(i)) is not None:
            yield found_again
        if other is not None:
            yield other


def _rematerialized(
    candidate: Candidate, batch: int, machines: Machines, models: Models, accumulates: bool = False
) -> Estimate | None:
    """The same with layers computed again, if it fits; with steps of accumulation where allowed."""
    if not hasattr(keras, "RematScope") or not may_fit(candidate, machines, models):
        return None
    try:
        found = estimate(replace(candidate, rematerialized=True), batch, machines, models)
    except (StrategyError, UnevenError):  # a layer that cannot be, or blocks of different steps
        return None
    if found.fits:
        return found
    return _accumulation(found.candidate, batch, machines, models) if accumulates else None


def _batch(candidate: Candidate, batch: int, machines: Machines, models: Models) -> int:
    """The largest batch that fits, a multiple of the candidate's replicas; 0 for none."""
    unit = candidate.replicas
    low, high = 0, batch // unit if may_fit(candidate, machines, models) else 0
    while low < high:
        middle = (low + high + 1) // 2
        if estimate(candidate, middle * unit, machines, models).fits:
            low = middle
        else:
            high = middle - 1
    return low * unit


def _accumulation(
    candidate: Candidate, batch: int, machines: Machines, models: Models
) -> Estimate | None:
    """The fewest steps of accumulation that fit, at the same global batch."""
    if not may_fit(candidate, machines, models):
        return None
    rows = batch // candidate.replicas
    steps = [n for n in range(2, rows + 1) if batch % (n * candidate.replicas) == 0]

    def of(n: int) -> Estimate:
        return estimate(replace(candidate, accumulate=n), batch, machines, models)

    # With no more rows than such a step has, and without what it accumulates, it would have to fit.
    # This traces nothing.
    if not steps or not estimate(candidate, batch // steps[-1], machines, models).fits:
        return None
    if not of(steps[-1]).fits:
        return None
    low, high = 0, len(steps) - 1  # a step of fewer rows never takes more
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if of(steps[middle]).fits else (middle + 1, high)
    return of(steps[low])


def _devices(
    batch: int, machines: Machines, models: Models, precision: str
) -> tuple[Machines, Estimate] | None:
    """The smallest number of devices, doubling each time, on which a candidate fits.

    The largest number is tried first: if nothing fits there, nothing does on fewer.
    """
    sizes = [machines]
    while sizes[-1].count * 2 <= _MOST_DEVICES:
        last = sizes[-1]
        if last.per_host < 8 and last.hosts == 1:
            sizes.append(replace(last, per_host=last.per_host * 2))
        else:
            sizes.append(replace(last, hosts=last.hosts * 2))

    def best(larger: Machines) -> Estimate | None:
        holding = [c for c in candidates(larger, [precision]) if may_fit(c, larger, models)]
        made = [estimate(c, batch, larger, models) for c in holding]
        return min((m for m in made if m.fits), key=lambda m: m.peak or 0, default=None)

    most = best(sizes[-1]) if len(sizes) > 1 else None
    if most is None:
        return None
    for larger in sizes[1:-1]:
        found = best(larger)
        if found is not None:
            return larger, found
    return sizes[-1], most
