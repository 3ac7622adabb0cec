"""Kernels over two axes that divide the model: the numbers are those of one device."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

pytestmark = [pytest.mark.slow, pytest.mark.child(devices=4, group="variable")]

X = np.random.default_rng(0).normal(size=(40, 12)).astype("float32")
Y = np.arange(40) % 4


def mlp() -> keras.Model:
    hidden = [layers.Dense(16, "relu"), layers.LayerNormalization(), layers.Dense(8, "gelu")]
    return keras.Sequential([keras.Input((12,)), *hidden, layers.Dense(4)])


def attention() -> keras.Model:
    inputs = keras.Input((12,))
    x = layers.Reshape((3, 4))(inputs)
    x = x + layers.MultiHeadAttention(2, 4)(x, x)
    x = x + layers.Dense(4)(layers.Dense(8, "gelu")(x))
    return keras.Model(inputs, layers.Dense(4)(layers.Flatten()(x)))


def train(model: Any, scope: Any) -> Any:
    keras.utils.set_random_seed(3)
    with scope():
        made = model()
        optimizer = keras.optimizers.Adam(0.01, epsilon=1e-4)
        made.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = made.fit(X, Y, batch_size=16, epochs=3, shuffle=False, verbose=0).history
    return history["loss"], made.predict(X, verbose=0), made.get_weights()


@functools.cache
def one_device(model: Any) -> Any:
    return train(model, contextlib.nullcontext)


TWO = {".*kernel": ("x", "y")}
HEADS = {
    ".*(query|key|value)/kernel": ("y", "x", None),
    ".*(query|key|value)/bias": ("x", None),
    ".*attention_output/kernel": ("x", None, "y"),
    ".*dense.*/kernel": ("x", "y"),
}


@pytest.mark.parametrize(
    ("model", "mesh", "rules"),
    [
        pytest.param(mlp, "x=2,y=2", TWO, marks=pytest.mark.exhaustive),
        # The attention below has kernels and biases that are divided so.
        pytest.param(
            mlp,
            "x=2,y=2",
            {".*kernel": ("y", "x"), ".*bias": ("y",)},
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(
            mlp,
            "x=2,y=2",
            {".*kernel": (None, "y"), ".*bias": ("x",)},
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(mlp, "x=4,y=1", TWO, marks=pytest.mark.exhaustive),
        (mlp, "batch=2,x=2,y=1", TWO),
        (attention, "x=2,y=2", HEADS),
        pytest.param(attention, "batch=2,x=1,y=2", HEADS, marks=pytest.mark.exhaustive),
    ],
)
def test_equals_one_device(model: Any, mesh: str, rules: Any) -> None:
    import tfaccel

    strategy = tfaccel.strategy(
        "model_parallel", mesh=mesh, layouts=rules, device_type="cpu", check="off"
    )
    for want, got in zip(one_device(model), train(model, strategy.scope), strict=True):
        for a, b in zip(want, got, strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)


def test_each_device_holds_a_quarter() -> None:
    import tfaccel

    strategy = tfaccel.strategy("model_parallel", mesh="x=2,y=2", layouts=TWO, device_type="cpu")
    with strategy.scope():
        kernel = mlp().layers[0].kernel.value
    assert {tuple(part.shape) for _, part in kernel.shards()} == {(6, 8)}
