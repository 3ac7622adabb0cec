"""Kind 4: gradients handled inside a `train_step`."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import layers, ops

from tests.programs.data import labels, reals, shares, weights
from tests.programs.program import Numbers, program


def classifier(units: int = 8) -> keras.Model:
    return keras.Sequential([keras.Input((6,)), layers.Dense(units, "tanh"), layers.Dense(3)])


class Clipped(keras.Model):
    """Clips by the global norm of the global batch's gradient, and logs that norm."""

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        of = self.trainable_variables
        gradients, norm = tf.clip_by_global_norm(tape.gradient(loss, of), 0.05)
        self.optimizer.apply_gradients(zip(gradients, of, strict=True))
        return {"loss": loss, "norm": norm}


@program(4, always=True)
def clipped_in_the_step(strategy: Any) -> Numbers:
    """clip_by_global_norm between tape and optimizer, the norm logged"""
    x, y = reals(27, 6), labels(3, 27)
    with strategy.scope():
        inner = classifier()
        model = Clipped(inner.inputs, inner.outputs)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(1.0), loss)
    run = model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}


@program(4)
def sharpness_aware(strategy: Any) -> Numbers:
    """Sharpness-aware minimization: two gradients per step, the first normed, added to weights"""

    class Sharp(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.inner = classifier()

        def call(self, x: Any) -> Any:
            return self.inner(x)

        def train_step(self, data: Any) -> dict[str, Any]:
            x, y = data
            of = self.trainable_variables
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True))
            first = tape.gradient(loss, of)
            scale = 0.1 / (tf.linalg.global_norm(first) + 1e-12)
            moves = [g * scale for g in first]
            for v, move in zip(of, moves, strict=True):
                v.assign_add(move)
            with tf.GradientTape() as tape:
                sharp = self.compute_loss(x, y, self(x, training=True))
            second = tape.gradient(sharp, of)
            for v, move in zip(of, moves, strict=True):
                v.assign_sub(move)
            self.optimizer.apply(second, of)
            return {"loss": loss, "sharp": sharp}

    x, y = reals(24, 6), labels(3, 24)
    with strategy.scope():
        model = Sharp()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.3), loss)
    run = model.fit(x, y, batch_size=10, epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}


class Wgan(keras.Model):
    """A critic with a gradient penalty on points between real and made rows."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = keras.Sequential(
            [keras.Input((4,)), layers.Dense(8, "tanh"), layers.Dense(1)]
        )
        self.maker = keras.Sequential([keras.Input((3,)), layers.Dense(8, "tanh"), layers.Dense(4)])

    def compile(self, critic_optimizer: Any, maker_optimizer: Any) -> None:
        super().compile()
        self.critic_optimizer, self.maker_optimizer = critic_optimizer, maker_optimizer

    def penalty(self, real: Any, made: Any, mix: Any) -> Any:
        between = real + mix * (made - real)
        with tf.GradientTape() as tape:
            tape.watch(between)
            scores = self.critic(between, training=True)
        norm = tf.sqrt(tf.reduce_sum(tf.square(tape.gradient(scores, [between])[0]), axis=1))
        return tf.reduce_mean(tf.square(norm - 1.0))

    def train_step(self, data: Any) -> dict[str, Any]:
        real, noise, mix = data["real"], data["noise"], data["mix"]
        with tf.GradientTape() as tape:
            made = self.maker(noise, training=True)
            cost = tf.reduce_mean(self.critic(made)) - tf.reduce_mean(self.critic(real))
            penalty = self.penalty(real, made, mix)
            critic_loss = cost + 10.0 * penalty
        of = self.critic.trainable_variables
        self.critic_optimizer.apply_gradients(zip(tape.gradient(critic_loss, of), of, strict=True))
        with tf.GradientTape() as tape:
            maker_loss = -tf.reduce_mean(self.critic(self.maker(noise, training=True)))
        of = self.maker.trainable_variables
        self.maker_optimizer.apply_gradients(zip(tape.gradient(maker_loss, of), of, strict=True))
        return {"critic_loss": critic_loss, "maker_loss": maker_loss, "penalty": penalty}


@program(4, always=True)
def wgan_with_gradient_penalty(strategy: Any) -> Numbers:
    """WGAN-GP, whose noise and mixing numbers come with the data"""
    data = {"real": reals(26, 4), "noise": reals(26, 3, seed=2), "mix": shares(26, 1, seed=3)}
    with strategy.scope():
        model = Wgan()
        model.compile(keras.optimizers.SGD(0.02), keras.optimizers.SGD(0.05))
    run = model.fit(tf.data.Dataset.from_tensor_slices(data).batch(8), epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}


@program(4, always=True)
def one_loss_for_two_optimizers(strategy: Any) -> Numbers:
    """A loss scaled by one optimizer, whose gradients feed a second one too"""

    class Backbone(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = layers.Dense(6, "tanh"), layers.Dense(2)

        def call(self, x: Any) -> Any:
            return self.head(self.body(x))

        def train_step(self, data: Any) -> dict[str, Any]:
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True))
                scaled = self.optimizer.scale_loss(loss)
            body, head = self.body.trainable_variables, self.head.trainable_variables
            gradients = tape.gradient(scaled, body + head)
            self.optimizer.apply(gradients[: len(body)], body)
            self.head_optimizer.apply(gradients[len(body) :], head)
            return {"loss": loss}

    x, y = reals(21, 5), reals(21, 2, seed=3)
    with strategy.scope():
        model = Backbone()
        model.compile(keras.optimizers.SGD(0.05), "mse")
        model.head_optimizer = keras.optimizers.SGD(0.5)
    run = model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}


@program(4)
def multi_optimizer(strategy: Any) -> Numbers:
    """keras.optimizers.MultiOptimizer: a slow one for the body, a fast one for the head"""
    x, y = reals(22, 6), labels(3, 22)
    with strategy.scope():
        model = classifier()
        slow, fast = keras.optimizers.SGD(0.02), keras.optimizers.SGD(0.4, momentum=0.5)
        head = model.layers[-1].name + "/.*"
        model.compile(
            keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(slow, {head: fast})),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
    run = model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}


@program(4)
def multi_optimizer_with_loss_scale(strategy: Any) -> Numbers:
    """A MultiOptimizer inside a LossScaleOptimizer, in a custom step"""

    class Scaled(keras.Model):
        def train_step(self, data: Any) -> dict[str, Any]:
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True))
                scaled = self.optimizer.scale_loss(loss)
            of = self.trainable_variables
            self.optimizer.apply(tape.gradient(scaled, of), of)
            return {"loss": loss}

    x, y = reals(20, 6), labels(3, 20)
    with strategy.scope():
        inner = classifier()
        model = Scaled(inner.inputs, inner.outputs)
        head = keras.optimizers.OptimizerMap(
            keras.optimizers.SGD(0.05), {".*/bias": keras.optimizers.SGD(0.5)}
        )
        model.compile(
            keras.optimizers.LossScaleOptimizer(
                keras.optimizers.MultiOptimizer(head), initial_scale=64.0, dynamic_growth_steps=2
            ),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
    run = model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}


@program(4)
def accumulated_by_hand(strategy: Any) -> Numbers:
    """Gradients added up in variables of the model, applied in every second step"""

    class Accumulates(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.inner = classifier()
            self.steps = self.add_weight(shape=(), dtype="int32", trainable=False, name="steps")
            self.sums = [
                self.add_weight(
                    shape=v.shape, initializer="zeros", trainable=False, name=f"sum_{i}"
                )
                for i, v in enumerate(self.inner.trainable_variables)
            ]

        def call(self, x: Any) -> Any:
            return self.inner(x)

        def train_step(self, data: Any) -> dict[str, Any]:
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True))
            of = self.inner.trainable_variables
            self.steps.assign_add(1)
            for total, gradient in zip(self.sums, tape.gradient(loss, of), strict=True):
                total.assign_add(gradient)
            now = ops.cast(ops.equal(self.steps % 2, 0), "float32")
            for v, total in zip(of, self.sums, strict=True):
                v.assign_sub(0.1 * now * total)
                total.assign(total * (1 - now))
            return {"loss": loss}

    x, y = reals(24, 6), labels(3, 24)
    with strategy.scope():
        model = Accumulates()
        model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    run = model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}


@program(4)
def adversarial_rows(strategy: Any) -> Numbers:
    """Fast gradient sign: rows moved by the sign of their own gradient, gradients centralized"""

    class Robust(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.inner = classifier()

        def call(self, x: Any) -> Any:
            return self.inner(x)

        def train_step(self, data: Any) -> dict[str, Any]:
            x, y = data
            with tf.GradientTape() as tape:
                tape.watch(x)
                clean = self.compute_loss(x, y, self(x, training=True))
            x = x + 0.3 * tf.sign(tape.gradient(clean, x))
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True))
            of = self.trainable_variables
            gradients = [
                g - tf.reduce_mean(g, axis=0, keepdims=True) if len(g.shape) > 1 else g
                for g in tape.gradient(loss, of)
            ]
            self.optimizer.apply(gradients, of)
            return {"clean": clean, "loss": loss}

    x, y = reals(25, 6), labels(3, 25)
    with strategy.scope():
        model = Robust()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.3), loss)
    run = model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}


@program(4, always=True)
def assertions_between_two_updates(strategy: Any) -> Numbers:
    """Two optimizers one after the other, with tf.debugging.assert_* of each one's results"""

    class Careful(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = layers.Dense(6, "tanh"), layers.Dense(2)

        def call(self, x: Any) -> Any:
            return self.head(self.body(x))

        def train_step(self, data: Any) -> dict[str, Any]:
            x, y = data
            said = {}
            for name, part, optimizer in (
                ("body", self.body, self.optimizer),
                ("head", self.head, self.head_optimizer),
            ):
                with tf.GradientTape() as tape:
                    outputs = self(x, training=True)
                    checks = [tf.debugging.assert_less(tf.abs(outputs), 1e6)]
                    with tf.control_dependencies(checks):
                        loss = tf.reduce_mean(tf.square(y - outputs))
                gradients = tape.gradient(loss, part.trainable_variables)
                optimizer.apply(gradients, part.trainable_variables)
                tf.debugging.assert_less(tf.linalg.global_norm(gradients), 1e6)
                said[name] = loss
            return said

    x, y = reals(21, 5), reals(21, 2, seed=3)
    with strategy.scope():
        model = Careful()
        model.build((None, 5))
        model.compile(keras.optimizers.SGD(0.05), "mse")
        model.head_optimizer = keras.optimizers.Adam(0.05)
    run = model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}
