"""Gives every worker the windows of all of them, in one small sum over workers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfaccel.monitoring.window import Window

_FIELDS = tuple(field.name for field in dataclasses.fields(Window))
_INTEGERS = frozenset(f.name for f in dataclasses.fields(Window) if f.type == "int")


def encode(window: Window) -> np.ndarray:
    """A window as float64 numbers; NaN where something was not measured."""
    values = (getattr(window, name) for name in _FIELDS)
    return np.array([np.nan if v is None else v for v in values], np.float64)


def decode(numbers: Sequence[float]) -> Window:
    """The inverse of `encode`.

    >>> decode(encode(Window(run=1, worker=0, number=2, step=5, steps=10, seconds=0.5))).seconds
    0.5
    """
    values: dict[str, Any] = {}
    for name, value in zip(_FIELDS, numbers, strict=True):
        known = None if np.isnan(value) else float(value)
        values[name] = int(known) if known is not None and name in _INTEGERS else known
    return Window(**values)


def gather(strategy: Any, window: Window, plan: int) -> tuple[list[Window], int]:
    """The windows of all workers, and the chief's plan; every worker must call.

    Args:
        strategy: of the `fit`.
        window: this worker's.
        plan: on the chief, how many steps the next window is to have.
    """
    cluster = getattr(strategy, "cluster", None)
    if cluster is None or cluster.size == 1:
        return [window], plan
    import tensorflow as tf

    rows = np.zeros((cluster.size, len(_FIELDS) + 1))
    rows[cluster.rank, :-1] = encode(window)
    rows[cluster.rank, -1] = plan if cluster.is_chief else 0
    (summed,) = strategy.sum_over_workers([tf.constant(rows)])
    gathered = np.asarray(summed)
    chief = int(gathered[0, _FIELDS.index("run")])  # whose clock counts
    windows = [dataclasses.replace(decode(row[:-1]), run=chief) for row in gathered]
    return windows, int(gathered[0, -1])
