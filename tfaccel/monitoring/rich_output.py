"""Prints lines and tables."""

from __future__ import annotations

from typing import Any

_WIDTH = 140


def show(*parts: Any) -> None:
    """Prints each part: a text as one line, or what rich can print."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)  # a log takes long lines, 80 fold tables
    for part in parts:
        console.print(part, markup=False, highlight=False, soft_wrap=isinstance(part, str))
