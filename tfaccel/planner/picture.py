"""A plan as a picture: what fills the memory of a device, and how much it has."""

from __future__ import annotations

from xml.sax.saxutils import escape

from tfaccel.planner.estimate import Estimate
from tfaccel.planner.plan import Plan, size

_PARTS = (
    ("parameters", "#4c72b0"),
    ("slots", "#55a868"),
    ("gradients", "#c44e52"),
    ("activations", "#dd8452"),
    ("workspace", "#937860"),
)
_LEFT, _WIDTH, _ROW, _TOP = 300, 560, 26, 64


def svg(found: Plan) -> str:
    """Stacked bars, one per candidate, and the line that none may cross."""
    shown = [one for one in found.estimates if one.peak is not None]
    limit = found.machines.device.usable
    # A bar far over the limit is cut there: its height is irrelevant.
    most = min(max([limit, *(one.peak or 0 for one in shown)]), 2 * limit)
    scale = _WIDTH / most
    height = _TOP + _ROW * len(shown) + 40
    title = f"{found.target} on {found.machines}, global batch {found.batch}"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 110}" '
        f'height="{height}" font-family="sans-serif" font-size="12">',
        f'<rect width="100%" height="100%" fill="white"/><text x="10" y="20" font-size="14" '
        f'font-weight="bold">{escape(title)}</text>',
        *_legend(),
    ]
    for k, one in enumerate(shown):
        lines += _bar(one, _TOP + k * _ROW, scale, most)
    x = _LEFT + limit * scale
    bottom = _TOP + _ROW * len(shown)
    lines += [
        f'<line x1="{x:.1f}" y1="{_TOP - 8}" x2="{x:.1f}" y2="{bottom}" stroke="black" '
        'stroke-dasharray="4 3"/>',
        f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">'
        f"{size(limit)} of a device</text>",
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _legend() -> list[str]:
    lines = []
    for k, (name, colour) in enumerate(_PARTS):
        x = _LEFT + k * 105
        lines.append(
            f'<rect x="{x}" y="32" width="10" height="10" fill="{colour}"/>'
            f'<text x="{x + 14}" y="41">{name}</text>'
        )
    return lines


def _bar(one: Estimate, top: float, scale: float, most: int) -> list[str]:
    name = f"{one.candidate.name}, {one.candidate.precision}"
    lines = [f'<text x="{_LEFT - 8}" y="{top + 13}" text-anchor="end">{escape(name)}</text>']
    left = 0
    for part, colour in _PARTS:
        held = getattr(one, part) + (one.other if part == "workspace" else 0)
        drawn = min(held, most - left)
        if drawn > 0:
            lines.append(
                f'<rect x="{_LEFT + left * scale:.1f}" y="{top}" width="{drawn * scale:.1f}" '
                f'height="{_ROW - 8}" fill="{colour}"><title>{part} {size(held)}</title></rect>'
            )
        left += max(drawn, 0)
    end = _LEFT + left * scale + 6
    lines.append(f'<text x="{end:.1f}" y="{top + 13}">{size(one.peak or 0)}</text>')
    return lines
