"""A plan as text: the table of candidates, the recommendation, and advice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tfaccel.planner.estimate import Estimate
from tfaccel.planner.plan import Plan, size
from tfaccel.planner.prices import dollars, price

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_PRICES = ("$/hour", "$/M rows")
_NOTE = (
    "Nothing was run. Bytes are those of one device, the fullest; a step's time is at the rates of "
    "the catalogue, and a real one is longer."
)
_MEASURED = (
    "No step was run. Bytes are those of one device, the fullest; a step's time is the sum of its "
    "operations, of which each was measured alone, and of its communication."
)


def render(found: Plan) -> Iterator[RenderableType]:
    """The parts of a report, one after the other."""
    from rich.text import Text

    device = found.machines.device
    yield Text(
        f"{found.target} on {found.machines}, global batch {found.batch}; a program may use "
        f"{size(device.usable)} of a device",
        style="bold",
    )
    yield table(found)
    if device.price is not None:
        yield Text(
            f"prices are those of the devices used, at {device.price:g} US dollars an hour for one "
            f"{device.name}: {device.price_source}, {device.price_date}"
        )
    for unknown in dict.fromkeys(one.why_not for one in found.estimates if one.why_not):
        yield Text(f"not known is {unknown}")
    for note in found.notes:
        yield Text(f"note: {note}")
    yield Text(found.reason[:1].upper() + found.reason[1:], style="bold")
    if found.command:
        yield Text(f"  {found.command}")
    for change in found.advice:
        one = change.estimate
        time = f", step {seconds(one)}" if one.time is not None else ""
        yield Text(f"fits with {change.change}: peak {size(one.peak or 0)}{time}")
        if change.command:
            yield Text(f"  {change.command}")
    yield Text(_NOTE if found.machines.timer is None else _MEASURED)


def table(found: Plan) -> Table:
    """One row per candidate."""
    from rich.table import Table

    made = Table()
    made.add_column("candidate", no_wrap=True)
    made.add_column("precision", no_wrap=True)
    for heading in (
        "parameters", "slots", "gradients", "activations", "workspace", "peak", "fits", "sent",
        "GFLOP", "step", "bound by", *(_PRICES if found.machines.device.price is not None else ()),
    ):  # fmt: skip
        made.add_column(heading, justify="right", no_wrap=True)
    precision = ""
    for one in found.estimates:
        if precision and one.candidate.precision != precision:
            made.add_section()
        precision = one.candidate.precision
        made.add_row(
            *_cells(one), *_prices(found, one), style="bold" if one is found.recommended else ""
        )
    return made


def _prices(found: Plan, one: Estimate) -> tuple[str, ...]:
    """The cells below `_PRICES`; none if the price of a device is unknown."""
    cost = price(one, found.machines.device, found.batch)
    return () if cost is None else (dollars(cost.hour), dollars(cost.million_rows))


def _cells(one: Estimate) -> tuple[str, ...]:
    counted = one.peak is not None
    return (
        one.candidate.name,
        one.candidate.precision,
        size(one.parameters),
        size(one.slots),
        size(one.gradients) if counted else "-",
        size(one.activations) if one.activations is not None else "-",
        size(one.workspace + one.other) if counted else "-",
        size(one.peak) if one.peak is not None else "-",
        {True: "yes", False: "no", None: "tight" if counted else "-"}[one.fits],
        size(sum(one.wire.values())) if one.wire else "0",
        f"{one.flops / 1e9:,.1f}" if one.flops is not None else "-",
        seconds(one),
        one.time.bound if one.time is not None else "-",
    )


def seconds(one: Estimate) -> str:
    """Formats the time of a step."""
    if one.time is None:
        return "-"
    total = one.time.total
    return f"{total * 1e3:.2f} ms" if total < 1 else f"{total:.2f} s"
