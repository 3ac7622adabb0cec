"""Communicating less often: accumulation with one all-reduce an update."""

from __future__ import annotations

import contextlib
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
ON_TWO = pytest.mark.child(workers=2, group="less often")


@functools.cache
def accumulating() -> Any:
    return MirroredStrategy(["CPU:0", "CPU:1"], frequency=Frequency(accumulate="local"))


@functools.cache
def workers() -> Any:
    """The strategy of this worker: one that can be asked for both ways of communicating less."""
    made = tfaccel.strategy(
        "multi_worker_mirrored", devices=1, device_type="cpu", accumulate="local"
    )
    assert made.num_replicas_in_sync == 2
    return made


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


def trained(scope: Any, case: str, **how: Any) -> keras.Model:
    build, optimizer, make = CASES[case]
    with scope():
        model = build(optimizer)
        model.run_eagerly = how.pop("run_eagerly", False)
    x, y = make(43)
    model.fit(x, y, batch_size=4, epochs=3, shuffle=False, verbose=0, **how)
    return model


def compare(strategy: Any, case: str, **how: Any) -> None:
    # 43 rows in batches of 4: the last batch has 3, and 33 steps leave one that is not applied.
    plain = trained(contextlib.nullcontext, case)
    ours = trained(strategy.scope, case, **how)
    for mine, expected in zip(ours.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-6)
    for mine, expected in zip(ours.optimizer.variables, plain.optimizer.variables, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-6, err_msg=mine.path)


@ON_ONE
@pytest.mark.parametrize("case", CASES)
def test_accumulating_locally_gives_one_device_s_weights(case: str) -> None:
    compare(accumulating(), case)


@ON_ONE
def test_it_does_so_eagerly_too() -> None:
    compare(accumulating(), "adam", run_eagerly=True)


@ON_TWO
@pytest.mark.parametrize("case", CASES)
def test_accumulating_locally_on_two_workers_gives_one_device_s_weights(case: str) -> None:
    compare(workers(), case)


def test_a_bound_clip_sees_the_accumulated_mean() -> None:
    # "clipped" above: were each batch's gradient clipped, one device's weights would be others.
    free, bound = (trained(contextlib.nullcontext, case) for case in ("momentum", "clipped"))
    assert not np.allclose(free.get_weights()[0], bound.get_weights()[0], rtol=1e-2)


def executed(strategy: Any, case: str, monkeypatch: Any) -> int:
    """How many all-reduces of gradients each replica executes in three epochs of eleven steps."""
    counted: list[int] = []
    plain = tf.distribute.ReplicaContext.all_reduce

    def noted(self: Any, op: Any, value: Any, options: Any = None) -> Any:
        def note() -> None:
            counted.append(1)

        sizes = [v.shape.num_elements() for v in tf.nest.flatten(value)]
        if sizes != [3, 1]:  # not the kernel and the bias
            return plain(self, op, value, options)
        with tf.control_dependencies([tf.py_function(note, [], [])]):
            value = tf.nest.map_structure(tf.identity, value)
        return plain(self, op, value, options)

    with monkeypatch.context() as patch:
        patch.setattr(tf.distribute.ReplicaContext, "all_reduce", noted)
        trained(strategy.scope, case)
    return len(counted) // strategy.num_replicas_in_sync


@ON_ONE
def test_gradients_are_reduced_once_for_each_update(monkeypatch: Any) -> None:
    assert executed(MirroredStrategy(["CPU:0", "CPU:1"]), "adam", monkeypatch) == 33
    # Steps 4, 8, ... 32 update, and an accumulator is brought together at the end of each epoch.
    assert executed(accumulating(), "adam", monkeypatch) == 8 + 3
