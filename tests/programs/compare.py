"""Whether a program's numbers are those of plain Keras."""

from __future__ import annotations

from typing import Any

import numpy as np

ATOL = 1e-6


def differences(want: Any, got: Any, rtol: float, where: str = "") -> list[str]:
    """Where two results differ, and by how much; nothing when they are the same numbers.

    >>> differences({"loss": [1.0, 2.0]}, {"loss": [1.0, 2.5]}, rtol=1e-4)
    ['loss: [1.0, 2.5] for [1.0, 2.0]']
    >>> differences({"loss": 1.0}, {"loss": 1.00001}, rtol=1e-4)
    []
    """
    if isinstance(want, dict) and isinstance(got, dict):
        if set(want) != set(got):
            return [f"{where or 'result'}: {sorted(got)} for {sorted(want)}"]
        pairs = [(want[key], got[key], f"{where}.{key}" if where else str(key)) for key in want]
        return [line for a, b, at in pairs for line in differences(a, b, rtol, at)]
    if _is_numbers(want) and _is_numbers(got):
        a, b = np.asarray(want, "float64"), np.asarray(got, "float64")
        same = a.shape == b.shape and np.allclose(b, a, rtol=rtol, atol=ATOL, equal_nan=True)
        return [] if same else [f"{where}: {_short(got)} for {_short(want)}"]
    if isinstance(want, list) and isinstance(got, list) and len(want) == len(got):
        lines = [
            differences(a, b, rtol, f"{where}[{i}]")
            for i, (a, b) in enumerate(zip(want, got, strict=True))
        ]
        return [line for found in lines for line in found]
    return [] if want == got else [f"{where}: {_short(got)} for {_short(want)}"]


def _is_numbers(value: Any) -> bool:
    if isinstance(value, (int, float)):
        return True
    if not isinstance(value, list):
        return False
    try:
        return np.asarray(value).dtype.kind in "fib"
    except ValueError:  # rows of different lengths
        return False


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 120 else text[:120] + " …"
