"""Exports that several tests look at, each made once."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROWS = 600


@dataclasses.dataclass(frozen=True)
class Digits:
    """Two halves of the digits, as images."""

    x: np.ndarray
    y: np.ndarray
    x_held_out: np.ndarray
    y_held_out: np.ndarray


@pytest.fixture(scope="session")
def digits() -> Digits:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = (data.images[..., None] / 16).astype("float32")
    return Digits(images[ROWS:], data.target[ROWS:], images[:ROWS], data.target[:ROWS])


@pytest.fixture(scope="session")
def needs_hls4ml() -> None:
    if importlib.util.find_spec("hls4ml") is None:
        pytest.skip("tfaccel[fpga] is for Python 3.11 and 3.12")


@pytest.fixture(scope="session")
def classifier(digits: Digits) -> Any:
    """A plain network with softmax at its end."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Flatten(name="flat"),
            layers.Dense(24, activation="relu", name="hidden"),
            layers.Dense(10, activation="softmax", name="scores"),
        ],
        name="classifier",
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(digits.x, digits.y, epochs=12, verbose=0)
    return model


@pytest.fixture(scope="session")
def saved(classifier: Any, digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the classifier and held-out rows, as the command line takes them."""
    home = tmp_path_factory.mktemp("saved")
    classifier.save(home / "model.keras")
    np.savez(home / "check.npz", x=digits.x_held_out, y=digits.y_held_out)
    return home
