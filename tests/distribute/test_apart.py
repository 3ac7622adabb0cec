"""Eager replicas: what a step keeps on `self` is its own."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.distribute.watched import mirrored, under

pytestmark = pytest.mark.child(devices=2)


class Keeps(keras.Model):
    """Keeps its output and a count, and uses them after the replicas have met."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(2)
        self.steps = 0
        self.last: Any = None

    def call(self, x: Any) -> Any:
        self.last = self.dense(x)
        return self.last

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape() as tape:
            self(x, training=True)
            loss = tf.reduce_mean((self.last - y) ** 2)
        of = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, of), of, strict=True))
        self.steps += 1
        return {"loss": loss, "error": tf.reduce_mean(tf.abs(self.last - y)), "at": self.steps}


def trained(strategy: Any) -> list[Any]:
    keras.utils.set_random_seed(1)
    model = under(strategy, Keeps)
    optimizer = under(strategy, keras.optimizers.SGD, 0.1)
    under(strategy, model.compile, optimizer, run_eagerly=True)
    x = np.random.default_rng(0).normal(size=(10, 3)).astype("float32")
    history = model.fit(x, x[:, :2] * 2, batch_size=4, epochs=2, verbose=0, shuffle=False).history
    return [*history.values(), *model.get_weights(), model.steps]


def test_attributes_of_a_step_are_those_of_its_replica() -> None:
    for ours, want in zip(trained(mirrored()), trained(tf.distribute.get_strategy()), strict=True):
        np.testing.assert_allclose(ours, want, rtol=1e-5)
