"""A row of the coverage table: one small model, its data, and what is expected of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

ROWS, BATCH = 13, 8  # batches of 8 and 5: the second divides over no mesh

EVERYTHING = ("before", "losses", "after", "weights")
STEPS = ("losses", "weights")  # of losses and metrics, which prediction does not meet
RANDOM = ("before", "shapes", "repeated")


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        name: the first word is the class that it covers.
        group: a heading of the table.
        model: makes the model.
        data: inputs and targets of `WEIGHTED_MEAN` rows.
        loss: of `compile`; called when it is a class.
        metrics: makes those of `compile`.
        expected: "works", "replicated: <what>", or "undivided: " or "refused: " and a regular
            expression.
        rtol: how near to one device.
        compared: the results that are compared with one device; "repeated" is compared with a
            second run of the same.
        rate: the learning rate of SGD.
        package: the package that must be there.
        floatx: "float64" for deep networks, where rounding in float32 grows from layer to layer
            and from step to step until it hides what is compared.
    """

    name: str
    group: str
    model: Callable[[], keras.Model]
    data: Callable[[], tuple[Any, Any]]
    loss: Any = "mse"
    metrics: Callable[[], list[Any]] = list
    expected: str = "works"
    rtol: float = 1e-5
    compared: tuple[str, ...] = EVERYTHING
    rate: float = 0.1
    package: str | None = None
    floatx: str = "float32"


def reals(*shape: int, rows: int = ROWS, seed: int = 0) -> np.ndarray:
    """Normal numbers."""
    return np.random.default_rng(seed).normal(size=(rows, *shape)).astype("float32")


def shares(*shape: int, seed: int = 0) -> np.ndarray:
    """Numbers between 0 and 1."""
    return np.random.default_rng(seed).uniform(0.05, 0.95, (ROWS, *shape)).astype("float32")


def ids(below: int, *shape: int, seed: int = 0, first: int = 0) -> np.ndarray:
    """Whole numbers."""
    return np.random.default_rng(seed).integers(first, below, (ROWS, *shape)).astype("int32")


def padded(below: int, length: int) -> np.ndarray:
    """Ids of sequences of different lengths, with zeros after their ends."""
    made = ids(below, length, first=1)
    for i, row in enumerate(made):
        row[2 + i % (length - 1) :] = 0
    return made
