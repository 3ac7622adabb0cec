"""What users train with besides the models of `test_numbers`, next to one device."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.child(devices=4, group="variable")]

X = np.random.default_rng(0).normal(size=(44, 12)).astype("float32")
Y = np.arange(44) % 4


@functools.cache
def strategy(layouts: str = "auto", check: str = "off") -> Any:
    """A mesh; without the first-step check, as tests compare with one device themselves."""
    import tfaccel

    return tfaccel.strategy(
        "model_parallel",
        mesh="batch=2,model=2",
        layouts=layouts,
        device_type="cpu",
        check=check,
    )


def dense(**more: Any) -> keras.Model:
    layers = [keras.layers.Dense(n, "gelu") for n in (32, 16)]
    model = keras.Sequential([keras.Input((12,)), *layers, keras.layers.Dense(4)])
    optimizer = keras.optimizers.Adam(0.01, epsilon=1e-4)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), **more)
    return model


def assert_as_one_device(
    train: Callable[[Any], Any], rtol: float = 1e-5, scope: Any = None
) -> None:
    """`train` takes a scope, and returns a nest of numbers."""
    results = []
    for each in (contextlib.nullcontext, scope or strategy().scope):
        keras.utils.set_random_seed(7)
        results.append(train(each))
    for want, got in zip(*map(keras.tree.flatten, results), strict=True):
        np.testing.assert_allclose(got, want, rtol=rtol, atol=1e-6)


class Pages(keras.utils.PyDataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        rows = slice(16 * index, 16 * index + 16)
        return X[rows], Y[rows]


class Long(Pages):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        return X[index : index + 16], Y[index : index + 16]


def test_a_py_dataset_with_threads() -> None:
    def train(scope: Any) -> Any:
        with scope():
            model = dense()
        # Of the first pass Keras takes one batch alone, and stops the threads that read ahead.
        counted = [model.evaluate(Pages(workers=2), verbose=0) for _ in range(3)]
        # With more batches than it keeps then.
        fitted = model.fit(Long(workers=2), shuffle=False, epochs=2, verbose=0)
        return [*counted, fitted.history["loss"]]

    assert_as_one_device(train)


def test_float16_logits_and_their_scaled_loss() -> None:
    def train(scope: Any) -> Any:
        with scope():
            model = dense()
        return model.fit(X, Y, batch_size=16, verbose=0).history["loss"]

    keras.config.set_dtype_policy("mixed_float16")
    try:
        assert_as_one_device(train, rtol=1e-3)
    finally:
        keras.config.set_dtype_policy("float32")


def test_the_layouts_that_keras_hub_gives_its_backbones() -> None:
    """They also divide weights over the batch axis."""
    import keras_hub

    import tfaccel

    of = keras_hub.models.LlamaBackbone
    devices = [f"cpu:{i}" for i in range(4)]
    mesh = keras.distribution.DeviceMesh((2, 2), ["batch", "model"], devices)
    ours = tfaccel.strategy(
        "model_parallel",
        mesh="batch=2,model=2",
        layouts=of.get_layout_map(mesh),
        device_type="cpu",
    )
    ids = np.random.default_rng(1).integers(1, 16, (12, 6))
    x = {"token_ids": ids, "padding_mask": np.arange(6) < np.arange(12)[:, None] % 4 + 3}

    def train(scope: Any) -> Any:
        with scope():
            backbone = of(
                vocabulary_size=16,
                num_layers=1,
                num_query_heads=4,
                num_key_value_heads=2,
                hidden_dim=8,
                intermediate_dim=16,
            )
            model = keras.Model(backbone.input, keras.layers.Dense(4)(backbone.output))
            model.compile(keras.optimizers.Adam(0.01, epsilon=1e-4), "mse")
        wanted = np.ones((12, 6, 4), "float32")
        history = model.fit(x, wanted, batch_size=8, shuffle=False, verbose=0)
        return [history.history["loss"], model.get_weights()]

    assert_as_one_device(train, scope=ours.scope)
