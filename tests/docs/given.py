"""What the snippets of the pages take as given: a small model, and data for it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np


def build_model() -> keras.Model:
    """A classifier of rows of 16 numbers, of layers that a mesh can divide."""
    return keras.Sequential(
        [
            keras.Input((16,)),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(8, activation="softmax"),
        ]
    )


def names() -> dict[str, Any]:
    """The names that a page starts with."""
    import tensorflow as tf

    import tfaccel

    rows = np.random.default_rng(0)
    x = rows.normal(size=(256, 16)).astype("float32")
    y = rows.integers(0, 8, 256)
    return {
        "__name__": "__main__",
        "build_model": build_model,
        "keras": keras,
        "np": np,
        "tf": tf,
        "tfaccel": tfaccel,
        "x": x,
        "y": y,
        "x_val": x[:64],
        "y_val": y[:64],
    }


def prepare(folder: Path) -> None:
    """Makes this process a script that was started in `folder` with no arguments."""
    sys.argv = [str(folder / "train.py")]
