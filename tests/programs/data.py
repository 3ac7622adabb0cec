"""Small data for the programs: the same numbers in every process."""

from __future__ import annotations

from typing import Any

import numpy as np


def reals(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal numbers, float32."""
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def shares(*shape: int, seed: int = 0) -> np.ndarray:
    """Numbers between 0 and 1, float32."""
    return np.random.default_rng(seed).uniform(0.05, 0.95, size=shape).astype("float32")


def labels(below: int, *shape: int, seed: int = 1) -> np.ndarray:
    """Whole numbers, int32."""
    return np.random.default_rng(seed).integers(0, below, size=shape).astype("int32")


def one_hot(below: int, rows: int, seed: int = 1) -> np.ndarray:
    """Rows with a single one, float32."""
    return np.eye(below, dtype="float32")[labels(below, rows, seed=seed)]


def phrases(rows: int, seed: int = 2) -> np.ndarray:
    """Texts of two to five words."""
    words = ["the", "a", "film", "plot", "was", "is", "good", "bad", "very", "not", "dull"]
    draw = np.random.default_rng(seed)
    return np.array([" ".join(draw.choice(words, draw.integers(2, 6))) for _ in range(rows)])


def weights(*of: Any) -> list[np.ndarray]:
    """What models, layers or lists of variables hold, without the states of seed generators."""
    found = []
    for each in of:
        for v in each if isinstance(each, (list, tuple)) else each.variables:
            if "seed_generator" not in getattr(v, "path", ""):
                found.append(np.asarray(v.numpy()))
    return found
