"""Kind 6: state that custom layers and metrics keep."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from tests.programs.data import labels, reals, weights
from tests.programs.program import Numbers, program


class CountsRows(layers.Layer):
    """Counts the rows it has seen, and the steps."""

    def build(self, shape: Any) -> None:
        self.rows = self.add_weight(shape=(), dtype="int32", trainable=False, name="rows")
        self.steps = self.add_weight(shape=(), dtype="int32", trainable=False, name="steps")

    def call(self, x: Any, training: bool = False) -> Any:
        if training:
            self.rows.assign_add(ops.shape(x)[0])
            self.steps.assign_add(1)
        return x


@program(6, always=True)
def counted_rows_and_steps(strategy: Any) -> Numbers:
    """A layer with integer counters of rows and of steps"""
    x, y = reals(22, 4), reals(22, 1, seed=2)
    with strategy.scope():
        counter = CountsRows()
        model = keras.Sequential([keras.Input((4,)), counter, layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.1), "mse")
    run = model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    return {
        "history": run.history,
        "rows": int(counter.rows.numpy()),
        "steps": int(counter.steps.numpy()),
    }


class ScalesByLargest(layers.Layer):
    """Divides features by the largest that was seen so far."""

    def build(self, shape: Any) -> None:
        self.largest = self.add_weight(
            shape=(shape[-1],), initializer="ones", trainable=False, name="largest"
        )

    def call(self, x: Any, training: bool = False) -> Any:
        if training:
            self.largest.assign(ops.maximum(self.largest, ops.max(ops.abs(x), axis=0)))
        return x / self.largest


@program(6, always=True)
def largest_seen(strategy: Any) -> Numbers:
    """A layer that keeps a running maximum (without it in the loss of the same step: a probe)"""
    x, y = reals(22, 4), reals(22, 1, seed=2)
    with strategy.scope():
        inputs = keras.Input((4,))
        probe = ScalesByLargest()
        seen = ops.stop_gradient(probe(inputs)) * 0.0
        model = keras.Model(inputs, layers.Dense(1)(inputs + seen))
        model.compile(keras.optimizers.SGD(0.1), "mse")
    run = model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    return {"history": run.history, "largest": probe.largest.numpy(), "weights": weights(model)}


class Codebook(layers.Layer):
    """Vector quantization whose codes are moving sums of the rows that chose them."""

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.width, self.number = width, codes
        begin = reals(codes, width, seed=8)
        self.sums = self.add_weight(
            shape=begin.shape, initializer=keras.initializers.Constant(begin), trainable=False
        )
        self.counts = self.add_weight(shape=(codes,), initializer="ones", trainable=False)

    def call(self, x: Any, training: bool = False) -> Any:
        codes = ops.convert_to_tensor(self.sums) / ops.expand_dims(self.counts, 1)
        away = ops.sum(ops.square(x[:, None, :] - codes[None, :, :]), axis=-1)
        chosen = ops.one_hot(ops.argmin(away, axis=-1), self.number)
        if training:
            self.counts.assign(0.9 * self.counts + 0.1 * ops.sum(chosen, axis=0))
            self.sums.assign(0.9 * self.sums + 0.1 * ops.matmul(ops.transpose(chosen), x))
        return x + ops.stop_gradient(ops.matmul(chosen, codes) - x)


@program(6)
def codebook_of_moving_sums(strategy: Any) -> Numbers:
    """Vector quantization with codes updated by moving sums over the rows of a batch"""
    x = reals(26, 6)
    with strategy.scope():
        book = Codebook(5, 3)
        model = keras.Sequential([keras.Input((6,)), layers.Dense(3), book, layers.Dense(6)])
        model.compile(keras.optimizers.SGD(0.05), "mse")
    run = model.fit(x, x, batch_size=8, epochs=2, verbose=0)
    return {
        "history": run.history,
        "weights": weights(model),
        "predict": model.predict(x[:5], verbose=0),
    }


@program(6, all_rows=True)
def teacher_and_queue(strategy: Any) -> Numbers:
    """Momentum contrast: a teacher that follows by moving average, a queue of its features"""

    class Moco(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.student, self.teacher = (
                keras.Sequential([keras.Input((5,)), layers.Dense(4)]) for _ in range(2)
            )
            self.teacher.set_weights(self.student.get_weights())
            self.teacher.trainable = False
            self.queue = self.add_weight(
                shape=(12, 4),
                initializer=keras.initializers.Constant(reals(12, 4, seed=9)),
                trainable=False,
                name="queue",
            )

        def call(self, x: Any) -> Any:
            return self.student(x)

        def train_step(self, data: Any) -> dict[str, Any]:
            one, two = data["one"], data["two"]
            keys = tf.math.l2_normalize(self.teacher(two), axis=1)
            with tf.GradientTape() as tape:
                queries = tf.math.l2_normalize(self.student(one), axis=1)
                positive = tf.reduce_sum(queries * keys, axis=1, keepdims=True)
                negative = tf.matmul(queries, self.queue, transpose_b=True)
                logits = tf.concat([positive, negative], axis=1)
                right = tf.zeros(tf.shape(logits)[0], tf.int32)
                loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(right, logits))
            of = self.student.trainable_variables
            self.optimizer.apply(tape.gradient(loss, of), of)
            for slow, fast in zip(self.teacher.weights, self.student.weights, strict=True):
                slow.assign(0.9 * slow + 0.1 * fast)
            self.queue.assign(tf.concat([keys, self.queue], axis=0)[:12])
            return {"loss": loss}

    data = {"one": reals(22, 5), "two": reals(22, 5) + 0.1 * reals(22, 5, seed=4)}
    with strategy.scope():
        model = Moco()
        model.compile(keras.optimizers.SGD(0.2))
    run = model.fit(tf.data.Dataset.from_tensor_slices(data).batch(8), epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}


class WorstError(keras.metrics.Metric):
    """The largest error so far."""

    def __init__(self, name: str = "worst", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.worst = self.add_weight(shape=(), initializer="zeros", name="worst")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.worst.assign(ops.maximum(self.worst, ops.max(ops.abs(y_true - y_pred))))

    def result(self) -> Any:
        return self.worst + 0.0


@program(6, always=True)
def metric_of_the_worst_row(strategy: Any) -> Numbers:
    """A metric whose state is a maximum, in fit, validation and evaluate"""
    x, y = reals(27, 4), reals(27, 1, seed=2)
    with strategy.scope():
        model = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.1), "mse", metrics=[WorstError(), "mae"])
    run = model.fit(x, y, batch_size=8, epochs=2, validation_split=0.3, verbose=0)
    return {"history": run.history, "evaluate": model.evaluate(x, y, batch_size=8, verbose=0)}


@program(6)
def resumed_with_two_optimizers(strategy: Any, folder: str) -> Numbers:
    """BackupAndRestore of a model with two optimizers, interrupted and started again"""

    class Pair(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.body = keras.Sequential([keras.Input((4,)), layers.Dense(5, "tanh")])
            self.head = keras.Sequential([keras.Input((5,)), layers.Dense(2)])

        def call(self, x: Any) -> Any:
            return self.head(self.body(x))

        def compile(self, **kwargs: Any) -> None:
            super().compile(optimizer=keras.optimizers.Adam(0.01), loss="mse", **kwargs)
            self.head_optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
            self.optimizer.build(self.body.trainable_variables)
            self.head_optimizer.build(self.head.trainable_variables)

        def train_step(self, data: Any) -> dict[str, Any]:
            x, y = data
            with tf.GradientTape(persistent=True) as tape:
                loss = self.compute_loss(x, y, self(x, training=True))
            body, head = self.body.trainable_variables, self.head.trainable_variables
            self.optimizer.apply(tape.gradient(loss, body), body)
            self.head_optimizer.apply(tape.gradient(loss, head), head)
            return {"loss": loss}

    class Stops(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if epoch == 1:
                raise InterruptedError

    x, y = reals(24, 4), reals(24, 2, seed=2)
    for callbacks in ([Stops()], []):
        keras.utils.set_random_seed(7)
        with strategy.scope():
            model = Pair()
            model.build((None, 4))
            model.compile()
        backup = keras.callbacks.BackupAndRestore(str(Path(folder) / "backup"))
        callbacks.append(backup)
        with contextlib.suppress(InterruptedError):
            model.fit(x, y, batch_size=8, epochs=4, shuffle=False, callbacks=callbacks, verbose=0)
    return {
        "iterations": [
            np.array(o.iterations.numpy()) for o in (model.optimizer, model.head_optimizer)
        ],
        "weights": weights(model),
    }


@program(6)
def statistics_with_tf_variables(strategy: Any) -> Numbers:
    """A layer that counts the classes it has seen in a tf.Variable, written by assign_add"""

    class SeenClasses(layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.seen = tf.Variable(tf.zeros(3), trainable=False, name="seen")

        def call(self, x: Any, training: bool = False) -> Any:
            if training:
                of = tf.one_hot(tf.argmax(x, axis=-1), 3)
                self.seen.assign_add(tf.reduce_sum(of, axis=0))
            return x

    x, y = reals(20, 4), labels(3, 20)
    with strategy.scope():
        seen = SeenClasses()
        model = keras.Sequential([keras.Input((4,)), layers.Dense(3), seen])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1), loss)
    run = model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    return {"history": run.history, "seen": seen.seen.numpy()}


@program(6)
def augmentation_that_adapts(strategy: Any) -> Numbers:
    """A train_step that assigns to a tf.Variable what follows from the accuracy of the batch"""

    class Augments(layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.probability = tf.Variable(0.0, trainable=False)

        def call(self, x: Any, draws: Any) -> Any:
            kept = ops.cast(draws < self.probability, "float32")[:, None]
            return kept * ops.flip(x, 1) + (1.0 - kept) * x

        def follow(self, logits: Any) -> None:
            accuracy = ops.mean(ops.cast(logits > 0.0, "float32"))
            self.probability.assign(0.9 * self.probability + 0.1 * accuracy)

    class Critic(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.augments, self.net = Augments(), keras.Sequential([keras.Input((6,))])
            self.net.add(layers.Dense(8, "tanh"))
            self.net.add(layers.Dense(1))

        def train_step(self, data: Any) -> Any:
            x, draws = data
            with tf.GradientTape() as tape:
                logits = self.net(self.augments(x, draws), training=True)
                loss = ops.mean(ops.softplus(-logits))
            of = self.net.trainable_variables
            self.optimizer.apply(tape.gradient(loss, of), of)
            self.augments.follow(logits)
            return {"loss": loss, "probability": self.augments.probability}

    x, draws = reals(22, 6), np.random.default_rng(3).uniform(0, 0.3, 22).astype("float32")
    with strategy.scope():
        model = Critic()
        model.compile(keras.optimizers.SGD(0.1))
    dataset = tf.data.Dataset.from_tensor_slices((x, draws)).batch(8)
    run = model.fit(dataset, epochs=3, verbose=0)
    return {
        "history": run.history,
        "weights": weights(model),
        "probability": model.augments.probability.numpy(),
    }
