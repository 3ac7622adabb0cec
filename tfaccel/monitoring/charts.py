"""Charts as SVG, drawn without a library, so that a page with them needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 760, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 12, 30
_TICKS = 4


@dataclass(frozen=True)
class Series:
    """One line of a chart, or one layer of its bars.

    Attributes:
        name: in the legend.
        values: for each place on the x axis; None where unknown.
        style: the class that gives it its colour.
    """

    name: str
    values: tuple[float | None, ...]
    style: str


def ticks(most: float) -> list[float]:
    """Round numbers from 0 to at least `most`.

    >>> ticks(37.0)
    [0.0, 10.0, 20.0, 30.0, 40.0]
    """
    if most <= 0:
        return [0.0, 1.0]
    power = 1.0
    while power * 10 <= most:
        power *= 10
    while power > most:
        power /= 10
    steps = [power * each for each in (0.25, 0.5, 1.0, 2.5)]
    step = next((s for s in steps if most / s <= _TICKS), 2.5 * power)
    count = 1
    while step * count < most * (1 - 1e-9):
        count += 1
    return [step * i for i in range(count + 1)]


def bars(places: Sequence[str], layers: Sequence[Series], unit: str) -> str:
    """Stacked bars.

    Args:
        places: what each bar is, for its tooltip.
        layers: from the bottom up.
        unit: of the values.
    """
    totals = [sum(layer.values[i] or 0.0 for layer in layers) for i in range(len(places))]
    axis = _Axis(ticks(max(totals, default=0.0)), len(places))
    width = max(1.0, axis.step * 0.8)
    drawn = [axis.drawn(unit)]
    for i, place in enumerate(places):
        below = 0.0
        for layer in layers:
            value = layer.values[i]
            if not value:
                continue
            top, bottom = axis.y(below + value), axis.y(below)
            drawn.append(
                f'<rect class="{layer.style}" x="{axis.x(i) - width / 2:.1f}" y="{top:.1f}" '
                f'width="{width:.1f}" height="{bottom - top:.1f}">'
                f"<title>{escape(place)}: {escape(layer.name)} {value:,.4g} {escape(unit)}</title>"
                "</rect>"
            )
            below += value
    return _svg(drawn)


def lines(places: Sequence[str], series: Sequence[Series], unit: str) -> str:
    """Lines with a point for each place; a gap where unknown."""
    known = [v for line in series for v in line.values if v is not None]
    axis = _Axis(ticks(max(known, default=0.0)), len(places))
    drawn = [axis.drawn(unit)]
    for line in series:
        points = [(axis.x(i), axis.y(v), i) for i, v in enumerate(line.values) if v is not None]
        path = " ".join(
            f"{'L' if n and points[n - 1][2] == i - 1 else 'M'}{x:.1f},{y:.1f}"
            for n, (x, y, i) in enumerate(points)
        )
        drawn.append(f'<path class="line {line.style}" d="{path}"/>')
        drawn += [
            f'<circle class="{line.style}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>'
            f"{escape(places[i])}: {escape(line.name)} {line.values[i]:,.4g} {escape(unit)}"
            "</title></circle>"
            for x, y, i in points
        ]
    return _svg(drawn)


def legend(series: Sequence[Series]) -> str:
    """The legend."""
    keys = (
        f'<span class="key"><svg width="12" height="12"><rect class="{one.style}" width="12" '
        f'height="12"/></svg> {escape(one.name)}</span>'
        for one in series
    )
    return f'<p class="legend">{" ".join(keys)}</p>'


class _Axis:
    """The coordinates of values.

    Args:
        values: with a line each.
        places: the number of places on the x axis.
    """

    def __init__(self, values: Sequence[float], places: int) -> None:
        self._values = values
        self.step = (WIDTH - _LEFT - _RIGHT) / max(1, places)

    def x(self, place: int) -> float:
        """The middle of a place."""
        return _LEFT + self.step * (place + 0.5)

    def y(self, value: float) -> float:
        """The y coordinate of a value."""
        return HEIGHT - _BOTTOM - value / self._values[-1] * (HEIGHT - _TOP - _BOTTOM)

    def drawn(self, unit: str) -> str:
        """The lines and their numbers."""
        grid = "".join(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{self.y(v):.1f}" '
            f'y2="{self.y(v):.1f}"/><text x="{_LEFT - 6}" y="{self.y(v) + 4:.1f}" '
            f'text-anchor="end">{v:,.4g}</text>'
            for v in self._values
        )
        return f'{grid}<text x="{_LEFT}" y="{HEIGHT - 8}">{escape(unit)}, by window</text>'


def _svg(drawn: Sequence[str]) -> str:
    inside = "".join(drawn)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" class="chart">{inside}</svg>'
