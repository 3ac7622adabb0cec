"""Shows which device holds which part of a model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any

from tfaccel.placement.report import Axes, Report, Row, holders, report

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

_COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red", "bright_cyan", "bright_magenta")
_MAX_CELLS = 8  # of a picture, each way
_WIDTH = 140


def visualize(model: Any, *, console: Console | None = None, file: IO[str] | None = None) -> None:
    """Prints the placement of each variable, pictures of the layouts, and bytes per device.

    `tfaccel.placement.report.report` gives the same as data.

    Args:
        model: a built Keras model, made under any strategy or none.
        console: prints there instead of to standard output.
        file: as `console`, for a text file.

    Raises:
        LayoutError: when the model is not built, so that it has no variables yet.
    """
    from rich.console import Console

    placement = report(model)
    if console is None:
        console = Console(file=file)
        if not console.is_terminal:
            console = Console(file=file, width=_WIDTH)  # a log takes long lines, 80 fold paths
    for part in render(placement):
        console.print(part)


def render(placement: Report) -> Iterator[RenderableType]:
    """The tables and pictures of a report, one after the other."""
    from rich.text import Text

    yield _variables(placement)
    for row in examples(placement.rows):
        shape = _shape(row.shape)
        yield Text(f"\n{_axes(row.storage)}, such as {row.path} {shape}", style="bold")
        yield _picture(row, placement)
    yield Text()
    yield _totals(placement)


def examples(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The first variable of every distinct drawable layout, except scalars."""
    first: dict[Axes, Row] = {}
    for row in rows:
        sharded = [axis for axis in row.storage if axis is not None]
        if row.shape and len(sharded) <= 2:
            first.setdefault(row.storage, row)
    return tuple(first.values())


def _variables(placement: Report) -> Table:
    from rich.table import Table

    mesh = ", ".join(f"{name}={size}" for name, size in placement.mesh) or "no mesh"
    title = f"{placement.model}: {mesh}, {named(placement.devices)}"
    table = Table(title=title, title_justify="left")
    for heading in ("variable", "shape", "dtype", "layout", "why"):
        table.add_column(heading, overflow="fold")
    for heading in ("bytes per device", "unsharded"):
        table.add_column(heading, justify="right")
    last = placement.rows[0].kind if placement.rows else ""
    for row in placement.rows:
        if row.kind != last:
            table.add_section()
            last = row.kind
        layout = _axes(row.storage)
        if row.compute != row.storage:
            layout += f", computed {_axes(row.compute)}"
        cells = (row.path, _shape(row.shape), row.dtype, layout, row.reason)
        table.add_row(*map(_plain, cells), f"{row.bytes_per_device:,}", f"{row.bytes_whole:,}")
    return table


def _totals(placement: Report) -> Table:
    from rich.table import Table

    table = Table()
    table.add_column("bytes")
    for heading in ("per device", "unsharded", "fraction"):
        table.add_column(heading, justify="right")
    for total in placement.totals:
        held, whole = f"{total.bytes_per_device:,}", f"{total.bytes_whole:,}"
        table.add_row(total.kind, held, whole, f"{total.fraction:.3f}")
    return table


def _picture(row: Row, placement: Report) -> Table:
    """A grid whose cells are parts of the variable, each with the devices that hold it."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    down, across = _drawn(row.storage)
    sizes = dict(placement.mesh)
    devices = holders(row.storage, placement.mesh, len(placement.devices))
    grid = Table(box=box.SQUARE, show_header=False, show_lines=True)
    parts = [1 if d is None or row.storage[d] is None else sizes[str(row.storage[d])]
             for d in (down, across)]  # fmt: skip
    for i in _shown(parts[0]):
        cells = []
        for j in _shown(parts[1]):
            if i is None or j is None:
                cells.append(Text("..."))
                continue
            place = {down: i, across: j}
            key = tuple(place.get(d, 0) for d in range(len(row.storage)))
            label = named([placement.devices[device] for device in devices[key]])
            colour = _COLOURS[(i * parts[1] + j) % len(_COLOURS)]
            cells.append(Text(label, style=colour))
        grid.add_row(*cells)
    return grid


def _drawn(axes: Axes) -> tuple[int | None, int | None]:
    """The dimensions drawn down and across: all of a matrix, else those that are sharded."""
    if len(axes) == 1:
        return None, 0
    sharded = [d for d, axis in enumerate(axes) if axis is not None]
    others = [d for d in range(len(axes)) if d not in sharded]
    down, across = sorted((sharded + others)[:2])
    return down, across


def _shown(parts: int) -> list[int | None]:
    if parts <= _MAX_CELLS:
        return list(range(parts))
    return [*range(_MAX_CELLS - 2), None, parts - 1]


def named(devices: Sequence[str]) -> str:
    """Names of devices, abbreviated.

    >>> named(["CPU:0", "CPU:1", "CPU:3"])
    'CPU:0-1,3'
    """
    runs: dict[str, list[list[int]]] = {}
    for device in devices:
        match = re.fullmatch(r"(.*):(\d+)", device)
        if match is None:
            runs.setdefault(device, [])
            continue
        number, of_kind = int(match[2]), runs.setdefault(match[1], [])
        if of_kind and number == of_kind[-1][1] + 1:
            of_kind[-1][1] = number
        else:
            of_kind.append([number, number])
    return "; ".join(
        kind + ":" * bool(spans) + ",".join(f"{a}-{b}" if b > a else str(a) for a, b in spans)
        for kind, spans in runs.items()
    )


def _axes(axes: Axes) -> str:
    """Axes in readable form: ``(-, model)``."""
    return "(" + ", ".join(axis or "-" for axis in axes) + ("," if len(axes) == 1 else "") + ")"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
