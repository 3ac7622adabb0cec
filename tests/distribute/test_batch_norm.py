"""BatchNormalization over the global batch, of layers that were written for one device."""

from __future__ import annotations

import functools
import json
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfaccel
from tfaccel.errors import StrategyError

pytestmark = pytest.mark.child(devices=2, group="batch norm")
ROWS, BATCH = 21, 8  # the last batch has 5 rows


@functools.cache
def strategy() -> Any:
    return tfaccel.strategy("mirrored", devices=2, device_type="cpu", batch_norm="synchronized")


def images() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.normal(1.0, 3.0, (ROWS, 4, 4, 2)).astype("float32"), rng.integers(0, 3, ROWS)


def texts() -> tuple[Any, Any]:
    rng = np.random.default_rng(1)
    tokens = rng.integers(1, 9, (ROWS, 6))
    for row, length in enumerate(rng.integers(1, 6, ROWS)):
        tokens[row, length:] = 0
    return tokens, rng.integers(0, 3, ROWS)


def convolution() -> Any:
    inner = keras.Sequential([layers.Conv2D(3, 2), layers.BatchNormalization(momentum=0.5)])
    return keras.Sequential(
        [keras.Input((4, 4, 2)), inner, layers.ReLU(), layers.Flatten(), layers.Dense(3)]
    )


def masked() -> Any:
    stack = [layers.Embedding(9, 4, mask_zero=True), layers.BatchNormalization(momentum=0.5)]
    return keras.Sequential(
        [keras.Input((6,)), *stack, layers.GlobalAveragePooling1D(), layers.Dense(3)]
    )


def trained(make: Any, data: Any) -> list[Any]:
    keras.utils.set_random_seed(3)
    model = make()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    x, y = data()
    history = model.fit(x, y, batch_size=BATCH, epochs=2, shuffle=False, verbose=0).history
    return [*model.get_weights(), model.evaluate(x, y, verbose=0), history["loss"]]


@pytest.mark.parametrize(("make", "data"), [(convolution, images), (masked, texts)])
def test_plain_layers_normalise_the_global_batch(make: Any, data: Any) -> None:
    strategy()
    expected = trained(make, data)
    with strategy().scope():
        found = trained(make, data)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_a_custom_loop_too() -> None:
    x, _ = images()

    def moving_mean(run: Any) -> Any:
        keras.utils.set_random_seed(3)
        model = convolution()
        for start in (0, 8):
            run(model, x[start : start + 8])
        return next(v for v in model.weights if v.path.endswith("moving_mean")).numpy()

    expected = moving_mean(lambda model, rows: model(rows, training=True))
    with strategy().scope():

        def run(model: Any, rows: Any) -> None:
            parts = strategy().experimental_distribute_values_from_function(
                lambda ctx: tf.constant(np.split(rows, 2)[ctx.replica_id_in_sync_group])
            )
            tf.function(lambda: strategy().run(lambda part: model(part, training=True), (parts,)))()

        found = moving_mean(run)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_what_is_saved_is_the_plain_layer(tmp_path: Path) -> None:
    with strategy().scope():
        model = convolution()
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.fit(*images(), batch_size=BATCH, verbose=0)
    model.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as file:
        config = json.dumps(json.loads(file.read("config.json")))
    assert '"synchronized": false' in config
    assert "GlobalBatchMoments" not in config


def test_it_does_not_go_with_local_steps() -> None:
    with pytest.raises(StrategyError, match="batch_norm='synchronized' and local_steps=2"):
        tfaccel.strategy(
            "mirrored", devices=2, device_type="cpu", batch_norm="synchronized", local_steps=2
        )
