"""Communicating less often: accumulation with one all-reduce an update."""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfaccel
from tfaccel.distribute.mirrored import MirroredStrategy
from tfaccel.distribute.frequency import Frequency
from tests.distribute.watched import data, linear

ON_ONE = pytest.mark.child(devices=2, group="less often")


@functools.cache
def accumulating() -> Any:
    return MirroredStrategy(["CPU:0", "CPU:1"], frequency=Frequency(accumulate="local"))


def words(rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.integers(0, 20, (rows, 3)), rng.integers(0, 2, (rows, 1)).astype("float32")


def embedding(optimizer: Any) -> keras.Model:
    keras.utils.set_random_seed(5)
    model = keras.Sequential(
        [
            keras.Input((3,), dtype="int32"),
            keras.layers.Embedding(20, 4),
            keras.layers.Flatten(),
            keras.layers.Dense(1),
        ]
    )
    model.compile(optimizer(), "mse")
    return model


def dense(optimizer: Any) -> keras.Model:
    keras.utils.set_random_seed(5)
    return linear(optimizer)


def adam(**more: Any) -> Any:
    return lambda: keras.optimizers.Adam(0.05, gradient_accumulation_steps=4, **more)


def sgd(**more: Any) -> Any:
    return lambda: keras.optimizers.SGD(0.05, gradient_accumulation_steps=4, **more)


def scaled() -> Any:
    return keras.optimizers.LossScaleOptimizer(adam()(), initial_scale=8.0)


CASES = {
    "adam": (dense, adam(), data),
    "momentum": (dense, sgd(momentum=0.9), data),
    "clipped": (dense, sgd(global_clipnorm=0.2), data),
    "scaled": (dense, scaled, data),
    "embedding": (embedding, adam(), words),
}


def trained(strategy: Any, case: str, rows: int = 43, **how: Any) -> keras.Model:
    build, optimizer, make = CASES[case]
    with strategy.scope():
        model = build(optimizer)
    x, y = make(rows)
    model.fit(x, y, batch_size=4, epochs=3, shuffle=False, verbose=0, **how)
    return model


def compare(strategy: Any, case: str, **how: Any) -> None:
    # 43 rows in batches of 4: the last batch has 3, and 33 steps leave one that is not applied.
    plain = trained(tf.distribute.OneDeviceStrategy("CPU:0"), case)
    ours = trained(strategy, case, **how)
    for mine, expected in zip(ours.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-6)
    for mine, expected in zip(ours.optimizer.variables, plain.optimizer.variables, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-6, err_msg=mine.path)


@ON_ONE
@pytest.mark.parametrize("case", CASES)
def test_accumulating_locally_gives_one_device_s_weights(case: str) -> None:
    compare(accumulating(), case)
