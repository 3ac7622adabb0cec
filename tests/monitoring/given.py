"""Windows and sums as they could be measured."""

from __future__ import annotations

from typing import Any

from tfaccel.monitoring.window import Window


def window(worker: int = 0, number: int = 1, **parts: Any) -> Window:
    """One of ten steps; parts that are not given took nothing.

    Args:
        worker: its rank.
        number: its number.
        **parts: seconds of a part, or any other attribute.
    """
    times = {f"{p}_s": 0.0 for p in ("input", "compute", "communication", "host")}
    times |= {f"{k}_s": v for k, v in parts.items() if f"{k}_s" in times}
    rest = {k: v for k, v in parts.items() if f"{k}_s" not in times}
    seconds = sum(v for v in times.values() if v is not None)
    given = {"run": 1000, "step": 10 * number, "steps": 10, "seconds": seconds, **times, **rest}
    return Window(worker=worker, number=number, **given)
