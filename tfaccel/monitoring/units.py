"""Formats figures for display."""

from __future__ import annotations

NONE = "-"
"""Shown for missing measurements."""


def percent(value: float | None) -> str:
    """A part of a whole.

    >>> percent(0.614), percent(0.004), percent(None)
    ('61 %', '0.4 %', '-')
    """
    if value is None:
        return NONE
    return f"{value * 100:.0f} %" if value >= 0.095 or value == 0 else f"{value * 100:.1f} %"


def size(value: float | None) -> str:
    """Bytes, in words.

    >>> size(3 * 2**30), size(5e6), size(None)
    ('3.0 GiB', '5 MiB', '-')
    """
    if value is None:
        return NONE
    return f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def number(value: float | None) -> str:
    """A count or a rate.

    >>> number(12345.6), number(1.234), number(None)
    ('12,346', '1.2', '-')
    """
    if value is None:
        return NONE
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def milliseconds(seconds: float | None) -> str:
    """Seconds as milliseconds.

    >>> milliseconds(0.0123), milliseconds(None)
    ('12.3 ms', '-')
    """
    return NONE if seconds is None else f"{seconds * 1e3:,.1f} ms"
