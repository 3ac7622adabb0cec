"""Lookups of strings and tables: in the model, where they run on the host, and in dataset.map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L  # noqa: N812

from tests.model_parallel.test_training import assert_as_one_device

pytestmark = [pytest.mark.slow, pytest.mark.child(devices=4)]

_RNG = np.random.default_rng(0)
_WORDS = np.array(["red", "green", "blue", "fast", "slow", "car", "bike"])
TEXT = np.array([" ".join(_RNG.choice(_WORDS, n)) for n in _RNG.integers(1, 6, 21)])
CITY = _RNG.choice(["Rome", "Oslo", "Lima"], (21, 1))
CODE = _RNG.choice([7, 70, 700], (21, 1))
AGE = _RNG.normal(40, 12, (21, 1)).astype("float32")
Y = _RNG.normal(size=(21, 1)).astype("float32")
IMAGES = _RNG.normal(size=(21, 6, 6, 1)).astype("float32")


def _text() -> Any:
    vectorize = L.TextVectorization(max_tokens=12, output_sequence_length=5)
    vectorize.adapt(TEXT)
    return vectorize


def columns() -> tuple[keras.Model, Any]:
    """Several kinds of lookups beside a number, in a nest of inputs."""
    city, code = L.StringLookup(output_mode="multi_hot"), L.IntegerLookup(output_mode="one_hot")
    city.adapt(CITY)
    code.adapt(CODE)
    age = L.Normalization()
    age.adapt(AGE)
    inputs = {
        "text": keras.Input((), dtype="string", name="text"),
        "who": {
            "city": keras.Input((1,), dtype="string", name="city"),
            "age": keras.Input((1,), name="age"),
        },
        "code": keras.Input((1,), dtype="int64", name="code"),
    }
    who = inputs["who"]
    words = L.GlobalAveragePooling1D()(L.Embedding(12, 4, mask_zero=True)(_text()(inputs["text"])))
    crossed = L.HashedCrossing(8, output_mode="one_hot")((who["city"], inputs["code"]))
    hashed = L.Embedding(6, 2)(L.Hashing(6)(who["city"]))
    parts = [words, city(who["city"]), age(who["age"]), code(inputs["code"]), crossed]
    x = L.Concatenate()([*parts, L.Flatten()(hashed)])
    x = L.Dropout(0.0)(L.Dense(8, "tanh")(x))
    given = {"text": TEXT, "who": {"city": CITY, "age": AGE}, "code": CODE}
    return keras.Model(inputs, L.Dense(1)(x)), given


def sequence() -> tuple[keras.Model, Any]:
    layers = [_text(), L.Embedding(12, 4), L.LSTM(4), L.Dense(1)]
    return keras.Sequential([keras.Input((), dtype="string"), *layers]), TEXT


def nested() -> tuple[keras.Model, Any]:
    """A model of preprocessing, called by another."""
    inputs = keras.Input((), dtype="string")
    first = keras.Model(inputs, _text()(inputs))
    x = L.Flatten()(L.Embedding(12, 4)(first(inputs)))
    return keras.Model(inputs, L.Dense(1)(x)), TEXT


@pytest.mark.parametrize(
    "make", [columns, pytest.param(sequence, marks=pytest.mark.exhaustive), nested]
)
def test_in_a_model_they_are_part_of_the_input(make: Callable[[], Any], tmp_path: Any) -> None:
    def train(scope: Any) -> Any:
        with scope():
            model, x = make()
            model.compile(keras.optimizers.SGD(0.1), "mse", metrics=["mae"])
        data = tf.data.Dataset.from_tensor_slices((x, Y)).batch(8)
        fitted = model.fit(data, epochs=2, verbose=0, validation_data=data.take(1))
        first = next(iter(data))
        on_batch = [model.test_on_batch(*first), model.train_on_batch(*first)]
        path = tmp_path / f"{make.__name__}.keras"
        model.save(path)
        again = keras.models.load_model(path)
        return [
            list(fitted.history.values()),
            np.ravel(on_batch),
            model.evaluate(data, verbose=0),
            model.predict(data, verbose=0),
            model.predict(data.map(lambda x, y: x), verbose=0),
            again.predict(data, verbose=0),
            keras.ops.convert_to_numpy(model(first[0])),
        ]

    assert_as_one_device(train)


def test_weights_of_rows_go_with_them() -> None:
    def train(scope: Any) -> Any:
        with scope():
            model, x = sequence()
            model.compile(keras.optimizers.SGD(0.1), "mse")
        weights = np.linspace(0, 1, 21)
        data = tf.data.Dataset.from_tensor_slices((x, Y, weights)).batch(8)
        return model.fit(data, epochs=2, verbose=0).history["loss"]

    assert_as_one_device(train)


class Reads(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.table = _text(), L.Embedding(12, 4)
        self.out = L.Dense(1)

    def call(self, x: Any) -> Any:
        return self.out(keras.ops.mean(self.table(self.words(x)), axis=1))


def test_a_model_that_cannot_be_split_runs_on_the_host() -> None:
    """A lookup in a custom call, and a layer that is trained before one that counts."""

    def of_words() -> tuple[Any, Any]:
        return Reads(), TEXT

    def of_numbers() -> tuple[Any, Any]:
        inputs = keras.Input((3,))
        x = L.Dense(3, name="before")(inputs)
        x = L.Lambda(lambda t: tf.cast(tf.abs(t), tf.int64) % 4)(x)
        x = L.CategoryEncoding(4, "multi_hot")(x)
        return keras.Model(inputs, L.Dense(1)(x)), np.linspace(0, 9, 63).reshape(21, 3)

    def train(scope: Any) -> Any:
        found = []
        for make in (of_words, of_numbers):
            with scope():
                model, x = make()
                model.compile(keras.optimizers.SGD(0.1), "mse")
            data = tf.data.Dataset.from_tensor_slices((x, Y)).batch(8)
            found += [model.fit(data, verbose=0).history["loss"], model.predict(data, verbose=0)]
            found.append(model.train_on_batch(tf.constant(x[:4]), Y[:4]))
        return found

    assert_as_one_device(train)


LAYERS: dict[str, Callable[[], Any]] = {
    "RandomFlip": lambda: L.RandomFlip("horizontal", seed=3),
    "RandomContrast": lambda: L.RandomContrast(0.5, seed=3),
    "RandomTranslation": lambda: L.RandomTranslation(0.2, 0.2, seed=3),
    "Dense": lambda: L.Dense(1),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("RandomFlip", marks=pytest.mark.exhaustive),
        pytest.param("RandomContrast", marks=pytest.mark.exhaustive),
        "RandomTranslation",
        "Dense",
    ],
)
def test_layers_of_the_scope_are_called_in_dataset_map(name: str) -> None:
    def train(scope: Any) -> Any:
        with scope():
            layer = LAYERS[name]()
            layer.build((None, 6, 6, 1))
            model = keras.Sequential([keras.Input((6, 6, 1)), L.Flatten(), L.Dense(1)])
            model.compile(keras.optimizers.SGD(0.1), "mse")
        data = tf.data.Dataset.from_tensor_slices((IMAGES, Y)).batch(8)
        data = data.map(lambda x, y: (layer(x, training=True) if "R" in name else layer(x), y))
        losses = model.fit(data, epochs=2, verbose=0).history["loss"]
        return [losses, model.get_weights(), [v.numpy() for v in layer.variables]]

    assert_as_one_device(train)
