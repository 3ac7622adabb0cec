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


class Sized(keras.layers.Layer):
    """Keeps in `build` what its `call` needs."""

    def build(self, shape: Any) -> None:
        self.size = shape[-1]
        self.dense = keras.layers.Dense(2)

    def call(self, x: Any) -> Any:
        return self.dense(x) / float(self.size)


class HasSized(keras.Model):
    """Calls its layer in its step alone."""

    def __init__(self) -> None:
        super().__init__()
        self.sized = Sized()

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self.sized(x))
        of = self.sized.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, of), of, strict=True))
        return {"loss": loss}


@pytest.mark.parametrize("eagerly", [False, True])
def test_what_a_layer_keeps_when_it_is_built_stays(eagerly: bool) -> None:
    def train(strategy: Any) -> list[Any]:
        keras.utils.set_random_seed(1)
        with strategy.scope():
            model = HasSized()
            model.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=eagerly)
        x = np.random.default_rng(0).normal(size=(10, 3)).astype("float32")
        model.fit(x, x[:, :2] * 2, batch_size=4, verbose=0, shuffle=False)
        assert model.sized.size == 3
        return list(model.sized.get_weights())

    for want, got in zip(train(tf.distribute.get_strategy()), train(mirrored()), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)
