"""Models with all that a run may keep of a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import layers, ops


class RowNumbers(keras.metrics.Metric):
    """The sum of the numbers of the rows of an epoch so far, which the model passes through."""

    def __init__(self) -> None:
        super().__init__(name="row")
        self.sum = self.add_weight(name="sum", initializer="zeros")

    def update_state(self, y: Any, p: Any, sample_weight: Any = None) -> None:
        self.sum.assign_add(ops.sum(ops.cast(p[:, 2], "float32")))

    def result(self) -> Any:
        return self.sum + 0.0


def loss(y: Any, p: Any) -> Any:
    return ops.mean((y - p[:, :2]) ** 2, -1)


class Noise(layers.Layer):
    """Noise from a state that TensorFlow does not show, also in validation."""

    def call(self, x: Any) -> Any:
        return x + 0.1 * tf.random.normal(tf.shape(x))


def dense(
    optimizer: Any = None,
    units: int = 8,
    deep: bool = False,
    replica_independent: bool = False,
    noise: bool = False,
) -> keras.Model:
    """A network; `replica_independent`: without what depends on the number of replicas."""
    inputs = keras.Input((6,))
    hidden = layers.Dense(units, "tanh")(inputs)
    if deep:
        hidden = layers.Dense(units, "tanh")(hidden)
    if not replica_independent:
        hidden = layers.Dropout(0.3)(layers.BatchNormalization()(hidden))
    if noise:
        hidden = Noise()(hidden)
    outputs = layers.Concatenate()([layers.Dense(2)(hidden), inputs[:, :1]])
    model = keras.Model(inputs, outputs)
    optimizer = optimizer or keras.optimizers.Adam(0.01, weight_decay=0.01)
    model.compile(optimizer, loss, metrics=[RowNumbers()])
    return model


class Gan(keras.Model):
    """Two networks and two optimizers, of which Keras saves one; noise with a seed generator."""

    def __init__(self) -> None:
        super().__init__()
        self.makes = keras.Sequential([layers.Dense(8, "tanh"), layers.Dense(6)])
        self.judges = keras.Sequential([layers.Dense(8, "tanh"), layers.Dense(1)])
        self.noise = keras.random.SeedGenerator(5)
        self.second = keras.optimizers.Adam(0.02)
        self.losses_of_judge = keras.metrics.Mean(name="judge")
        self.shown = keras.metrics.Mean(name="row")

    def train_step(self, data: Any) -> dict[str, Any]:
        x, _ = data
        drawn = keras.random.normal((ops.shape(x)[0], 3), seed=self.noise)
        bce = keras.losses.BinaryCrossentropy(from_logits=True)
        with tf.GradientTape() as tape:
            real, fake = self.judges(x[:, 1:]), self.judges(self.makes(drawn)[:, 1:])
            loss = bce(ops.ones_like(real), real) + bce(ops.zeros_like(fake), fake)
        variables = self.judges.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        with tf.GradientTape() as tape:
            fake = self.judges(self.makes(drawn)[:, 1:])
            deceived = bce(ops.ones_like(fake), fake)
        variables = self.makes.trainable_variables
        self.second.apply_gradients(zip(tape.gradient(deceived, variables), variables, strict=True))
        self.losses_of_judge.update_state(loss)
        self.shown.update_state(x[:, 0])
        return {"loss": self.losses_of_judge.result(), "row": self.shown.result()}


class Draws(keras.Model):
    """Draws from a generator of TensorFlow's in its step."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = layers.Dense(2)
        self.generator = tf.random.Generator.from_seed(7)
        self.shown = RowNumbers()

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape() as tape:
            noise = self.generator.normal(tf.shape(x[:, 1:]))
            loss = tf.reduce_mean((self.inner(x[:, 1:] + noise) - y) ** 2)
        variables = self.inner.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        self.shown.update_state(y, tf.concat([y, x[:, :1]], 1))
        return {"loss": loss, "row": self.shown.result()}


def draws() -> keras.Model:
    model = Draws()
    model.compile(keras.optimizers.Adam(0.01))
    return model


def gan() -> keras.Model:
    model = Gan()
    model.compile(keras.optimizers.RMSprop(0.01))
    return model


def accumulating(replica_independent: bool = False) -> keras.Model:
    sgd = keras.optimizers.SGD(0.05, momentum=0.9, gradient_accumulation_steps=2)
    return dense(sgd, replica_independent=replica_independent)


def averaged() -> keras.Model:
    return dense(keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9))


def compressed() -> keras.Model:
    """With a loss scale and accumulated gradients; large enough for PowerSGD."""
    sgd = keras.optimizers.SGD(0.05, momentum=0.9, gradient_accumulation_steps=2)
    scaled = keras.optimizers.LossScaleOptimizer(sgd, dynamic_growth_steps=4)
    return dense(scaled, units=64, deep=True)


def scaled() -> keras.Model:
    inner = keras.optimizers.Adam(0.01)
    return dense(keras.optimizers.LossScaleOptimizer(inner, dynamic_growth_steps=4))


MODELS: dict[str, Callable[[], keras.Model]] = {
    "dense": dense,
    "alike": lambda: dense(replica_independent=True),
    "accumulating alike": lambda: accumulating(replica_independent=True),
    "tf.random": lambda: dense(noise=True),
    "wide": lambda: dense(units=64, deep=True),
    "gan": gan,
    "draws": draws,
    "accumulating": accumulating,
    "scaled": scaled,
    "averaged": averaged,
    "averaged by epoch": averaged,
    "compressed": compressed,
}
