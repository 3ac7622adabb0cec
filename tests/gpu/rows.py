"""What is trained: a choice of the conformance table, and models of the size of the examples."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

from tests.conformance.cases import CASES, Case, run_case
from tests.conformance.data import images, lonely, tokens
from tests.conformance.models import classify, cnn, embedded
from tests.conformance.scripts import SCRIPTS

EXAMPLES = Path(__file__).parents[2] / "examples"


@functools.cache
def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def digits() -> dict[str, Any]:
    """With noise: blank pixels are all alike, and rounding decides which of them is the largest."""
    held = load_digits()
    noise = np.random.default_rng(0).normal(0, 0.1, held.images.shape)
    x = (held.images / 16 + noise)[..., None].astype("float32")
    return {"x": x[:500], "y": held.target[:500], "batch_size": 64}


def digit_reader() -> keras.Model:
    """The example's, without Dropout, whose masks differ from replica to replica."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.BatchNormalization(synchronized=True),
            keras.layers.Conv2D(64, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10, dtype="float32"),
        ]
    )


def text() -> dict[str, Any]:
    x, y = example("language_model").load_data()[:2]
    return {"x": x[:60, :32], "y": y[:60, :32], "batch_size": 16}


def language_model() -> keras.Model:
    model: keras.Model = example("language_model").build_model(length=32, width=64)
    return model


def sgd(rate: float) -> dict[str, Any]:
    """Without a metric, in which rounding may move a whole row."""
    return classify(lambda: keras.optimizers.SGD(rate, momentum=0.9), metrics=None)


def one_more(data: dict[str, Any]) -> dict[str, Any]:
    """The first 33 rows: the last batch has one, and leaves a replica with nothing."""
    return {**data, "x": data["x"][:33], "y": data["y"][:33]}


# Not Adam, which makes rounding as large as anything else where a gradient is nearly none.
_OWN = [
    Case("digits", digit_reader, lambda: sgd(0.02), digits, rtol=1e-3),
    Case("digits_float16", digit_reader, lambda: sgd(0.02), digits, rtol=3e-2,
         policy="mixed_float16", equal=("history", "evaluate")),
    Case("language_model", language_model, lambda: sgd(0.05), text, rtol=1e-3),
    Case("language_model_bfloat16", language_model, lambda: sgd(0.05), text, rtol=3e-2,
         policy="mixed_bfloat16", equal=("history", "evaluate")),
    Case("cnn_last_batch_of_one", lambda: cnn(synchronized=True), classify,
         lambda: one_more(images())),
    Case("lstm_last_batch_of_one", lambda: embedded(
        keras.layers.LSTM(6), keras.layers.Dense(3)), classify, lambda: one_more(tokens())),
]  # fmt: skip
ROWS: dict[str, Case] = {**CASES, **{row.name: row for row in _OWN}}
assert len(lonely()["x"]) == 33


class Where(keras.callbacks.Callback):
    """On which devices the weights lie."""

    def __init__(self) -> None:
        super().__init__()
        self.devices: set[str] = set()

    def on_train_end(self, logs: Any = None) -> None:
        for weight in self.model.weights:
            held = weight.value
            mesh = getattr(held, "_mesh", None)
            copies = getattr(held, "values", (held,))
            places = mesh.local_devices() if mesh is not None else [c.device for c in copies]
            self.devices |= {tf.DeviceSpec.from_string(p).to_string() for p in places}


def run(name: str, scope: Any, folder: str) -> dict[str, Any]:
    """Trains one row, and returns what is compared."""
    if name in SCRIPTS:
        return SCRIPTS[name](scope, folder)
    row, where = ROWS[name], Where()
    before = row.callbacks or (lambda _: [])
    fields = {**vars(row), "callbacks": lambda f: [*before(f), where]}
    result = run_case(Case(**fields), scope, folder)
    parts = {d.rpartition("device:")[2] for d in where.devices}
    return {**result, "devices": np.array(sorted(parts))}
