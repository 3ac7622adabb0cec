"""What later steps compute and the first one does not: losses and states turned on by then."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import layers, ops

from tests.programs.data import labels, reals, weights
from tests.programs.program import Numbers, program


class Raised(keras.callbacks.Callback):
    """Raises the weight of a loss from 0, epoch by epoch."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.model.raised.assign(0.5 * epoch)


@program(1, all_rows=True)
def distance_raised_from_nothing(strategy: Any) -> Numbers:
    """A Wasserstein autoencoder: a callback raises the weight of a distance between rows from 0"""

    class Autoencoder(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = layers.Dense(2), layers.Dense(6)
            self.raised = self.add_weight(initializer="zeros", trainable=False, name="raised")

        def call(self, x: Any) -> Any:
            return self.decoder(self.encoder(x))

        def train_step(self, data: Any) -> Any:
            x, prior = data

            def alike(a: Any, b: Any) -> Any:
                away = tf.reduce_sum(tf.square(a[:, None] - b[None]), axis=-1)
                return tf.reduce_mean(tf.exp(-away))

            with tf.GradientTape() as tape:
                codes = self.encoder(x)
                error = tf.reduce_mean(tf.square(self.decoder(codes) - x))
                distance = alike(codes, codes) + alike(prior, prior) - 2 * alike(codes, prior)
                loss = error + self.raised * distance
            of = self.trainable_variables
            self.optimizer.apply(tape.gradient(loss, of), of)
            return {"error": error, "whole": loss}

    data = tf.data.Dataset.from_tensor_slices((reals(26, 6), reals(26, 2, seed=4))).batch(8)
    with strategy.scope():
        model = Autoencoder()
        model.compile(keras.optimizers.SGD(0.3))
    run = model.fit(data, epochs=3, verbose=0, callbacks=[Raised()])
    return {"history": run.history, "weights": weights(model)}


@program(1, all_rows=True)
def penalty_of_a_layer_after_a_warm_up(strategy: Any) -> Numbers:
    """A layer adds the correlation of features over the batch, by a factor that is 0 at first"""

    class Decorrelates(layers.Layer):
        def build(self, shape: Any) -> None:
            self.steps = self.add_weight(
                initializer="zeros", dtype="int32", trainable=False, name="steps"
            )

        def call(self, x: Any, training: bool = False) -> Any:
            centred = x - ops.mean(x, axis=0)
            rows = ops.cast(ops.shape(x)[0], "float32")
            products = ops.matmul(ops.transpose(centred), centred) / rows
            warm = ops.minimum(ops.cast(self.steps, "float32") / 6.0, 1.0)
            self.add_loss(0.1 * warm * ops.sum(ops.square(products - ops.eye(4))))
            if training:
                self.steps.assign(self.steps + 1)
            return x

    x, y = reals(26, 6), labels(3, 26)
    with strategy.scope():
        model = keras.Sequential([keras.Input((6,)), layers.Dense(4, "tanh"), Decorrelates()])
        model.add(layers.Dense(3))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1), loss)
    run = model.fit(x, y, batch_size=8, epochs=3, verbose=0)
    return {
        "history": run.history,
        "weights": weights(model),
        "evaluate": model.evaluate(x, y, batch_size=8, verbose=0),
    }


@program(1, all_rows=True, undivided=True)
def loss_between_rows_after_some_steps(strategy: Any) -> Numbers:
    """A train_step that goes over from a loss of each row to one between rows, by tf.cond"""

    class Contrasted(keras.Model):
        def train_step(self, data: Any) -> Any:
            x, y = data
            with tf.GradientTape() as tape:
                out = self(x, training=True)

                def between_rows() -> Any:
                    unit = tf.math.l2_normalize(out, axis=1)
                    alike = tf.matmul(unit, unit, transpose_b=True)
                    same = tf.cast(y[:, None] == y[None], tf.float32)
                    return tf.reduce_mean(tf.square(alike - same))

                first = self.optimizer.iterations < 3
                loss = tf.cond(first, lambda: self.compute_loss(x, y, out), between_rows)
            of = self.trainable_variables
            self.optimizer.apply(tape.gradient(loss, of), of)
            return {"now": loss}

    x, y = reals(26, 6), labels(3, 26)
    with strategy.scope():
        inputs = keras.Input((6,))
        model = Contrasted(inputs, layers.Dense(3)(layers.Dense(8, "tanh")(inputs)))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1), loss)
    run = model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}


@program(6)
def codes_started_again(strategy: Any) -> Numbers:
    """Vector quantization that starts codes again from the first rows when they are not used"""

    class Codes(layers.Layer):
        def build(self, shape: Any) -> None:
            begin = keras.initializers.Constant(reals(4, shape[-1], seed=8))
            self.codes = self.add_weight(shape=(4, shape[-1]), initializer=begin, trainable=False)
            self.use = self.add_weight(shape=(4,), initializer="ones", trainable=False)

        def call(self, x: Any, training: bool = False) -> Any:
            away = ops.sum(ops.square(x[:, None] - self.codes[None]), axis=-1)
            chosen = ops.one_hot(ops.argmin(away, axis=-1), 4)
            nearest = ops.matmul(chosen, self.codes)
            if training:
                use = 0.7 * self.use + 1.2 * ops.mean(chosen, axis=0)
                moved = 0.9 * self.codes + 0.1 * ops.mean(x, axis=0)
                unused = use < 0.6
                self.codes.assign(ops.where(unused[:, None], x[:4], moved))
                self.use.assign(ops.where(unused, 1.0, use))
            self.add_loss(0.25 * ops.mean(ops.square(ops.stop_gradient(nearest) - x)))
            return x + ops.stop_gradient(nearest - x)

    x, y = reals(32, 6), labels(3, 32)
    with strategy.scope():
        model = keras.Sequential([keras.Input((6,)), layers.Dense(3), Codes(), layers.Dense(3)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1), loss)
    run = model.fit(x, y, batch_size=8, epochs=2, verbose=0, shuffle=False)
    return {"history": run.history, "weights": weights(model)}
