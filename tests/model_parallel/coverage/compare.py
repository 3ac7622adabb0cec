"""What became of a row on a mesh, next to one device."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.model_parallel.coverage.row import Row

ATOL = 1e-6


@dataclass(frozen=True)
class Outcome:
    """What became of it.

    Attributes:
        kind: "works", "undivided" (works, and each process computes the whole of it), "refused",
            "fails" (an error that says no more than TensorFlow does) or "wrong" (other numbers
            than one device).
        text: the message, or what differs.
        far: the largest difference from one device, as a share of the one allowed.
    """

    kind: str
    text: str = ""
    far: float = 0.0


def outcome(row: Row, want: dict[str, Any], got: dict[str, Any]) -> Outcome:
    """Compares the results of a row on one device and on a mesh."""
    if "error" in want:
        raise AssertionError(f"{row.name} fails on one device: {want['error']}")
    if "error" in got:
        text = re.sub(r"\s+", " ", got["error"])
        return Outcome("refused" if "Error: tfaccel: " in text else "fails", text)
    worst = {}
    for key in row.compared:
        repeated = key == "repeated"
        one, other = (got["again"], got["losses"]) if repeated else (want[key], got[key])
        worst[key] = difference(one, other, row.rtol)
    far = max(worst.values())
    text = ", ".join(f"{k} {v:.3g}" for k, v in worst.items() if not v <= 1)
    if not text and got.get("undivided"):
        return Outcome("undivided", "; ".join(got["undivided"]), far)
    return Outcome("wrong" if text else "works", text, far)


def difference(want: Any, got: Any, rtol: float) -> float:
    """The largest difference, where 1 is the largest that is allowed.

    >>> difference([1.0, 2.0], [1.0, 2.0], 1e-5)
    0.0
    >>> difference([1.0], [1.0, 2.0], 1e-5)
    inf
    """
    one, other = list(_leaves(want)), list(_leaves(got))
    if [a.shape for a in one] != [b.shape for b in other]:
        return float("inf")
    far = 0.0
    for a, b in zip(one, other, strict=True):
        if a.size:
            away = np.abs(b - a) / (ATOL + rtol * np.abs(a))
            away[(a == b) | (np.isnan(a) & np.isnan(b))] = 0
            far = max(far, float(np.max(np.nan_to_num(away, nan=np.inf, posinf=np.inf))))
    return far


def _leaves(value: Any) -> Iterator[np.ndarray]:
    if isinstance(value, dict):
        for key in sorted(value):
            yield from _leaves(value[key])
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _leaves(each)
    else:
        yield np.atleast_1d(np.asarray(value, "float64"))
