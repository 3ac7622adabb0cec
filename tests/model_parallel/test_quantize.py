"""A model on a mesh can be quantized, and then says what it would on one device."""

from __future__ import annotations

import contextlib
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from tests.model_parallel.test_training import strategy

pytestmark = [pytest.mark.slow, pytest.mark.child(devices=4, group="variable")]

TOKENS = np.random.default_rng(0).integers(0, 32, (20, 6))
Y = np.arange(20) % 4


def model(attention: bool = True) -> keras.Model:
    keras.utils.set_random_seed(3)
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Embedding(32, 16)(tokens)
    if attention:
        x = x + layers.MultiHeadAttention(2, 8)(x, x)
    x = x + layers.Dense(16)(layers.Dense(32, "gelu")(x))
    made = keras.Model(tokens, layers.Dense(4)(layers.Flatten()(x)))
    made.compile(keras.optimizers.Adam(0.01, epsilon=1e-4), loss())
    return made


def loss() -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.mark.parametrize(
    ("mode", "layouts"),
    [
        # As `test_outside_the_scope_it_is_taken_over` has it.
        pytest.param("int8", "auto", marks=pytest.mark.exhaustive),
        ("int4", "auto"),
        ("float8", "auto"),
        pytest.param("int8", "fully_sharded", marks=pytest.mark.exhaustive),
        pytest.param("int4", "fully_sharded", marks=pytest.mark.exhaustive),
        pytest.param("float8", "fully_sharded", marks=pytest.mark.exhaustive),
    ],
)
def test_quantizes_as_one_device_does(mode: str, layouts: str) -> None:
    found: list[Any] = []
    trained: Any = None
    for scope in (contextlib.nullcontext, strategy(layouts).scope):
        with scope():
            made = model(attention=mode != "int4")  # its scales change their shape
            if trained is None:
                made.fit(TOKENS, Y, batch_size=8, verbose=0)
                trained = made.get_weights()
            made.set_weights(trained)
            made.quantize(mode)
            made.compile("sgd", loss())
        found.append([made.predict(TOKENS, verbose=0), made.evaluate(TOKENS, Y, verbose=0)])
        if mode == "float8":  # the one that trains
            fitted = made.fit(TOKENS, Y, shuffle=False, epochs=2, verbose=0)
            found[-1].append(fitted.history["loss"])
    for want, got in zip(*found, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_outside_the_scope_it_is_taken_over() -> None:
    found = []
    for scope in (contextlib.nullcontext, strategy().scope):
        keras.utils.set_random_seed(7)
        with scope():
            made = model()
        made.quantize("int8")
        found.append(made.predict(TOKENS, verbose=0))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4, atol=1e-5)
