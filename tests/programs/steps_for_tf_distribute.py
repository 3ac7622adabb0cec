"""Kind 3: a `train_step` written for `tf.distribute`."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import layers

from tests.programs.data import labels, reals, weights
from tests.programs.program import Numbers, program

BATCH = 8


class DividesByTheGlobalBatch(keras.Model):
    """The loss of TensorFlow's guide: a sum over the rows here, over the global batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = layers.Dense(8, "tanh")
        self.logits = layers.Dense(3)

    def call(self, x: Any) -> Any:
        return self.logits(self.hidden(x))

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape() as tape:
            rows = keras.losses.sparse_categorical_crossentropy(
                y, self(x, training=True), from_logits=True
            )
            loss = tf.nn.compute_average_loss(rows, global_batch_size=BATCH)
        of = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, of), of, strict=True))
        return {"rows": tf.reduce_mean(rows)}


@program(3, always=True)
def divided_by_the_global_batch(strategy: Any) -> Numbers:
    """compute_average_loss with the global batch size, the last batch smaller"""
    x, y = reals(28, 5), labels(3, 28)
    with strategy.scope():
        model = DividesByTheGlobalBatch()
        model.compile(keras.optimizers.SGD(0.3))
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
    run = model.fit(data, epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}


@program(3, always=True)
def divided_by_the_replicas(strategy: Any) -> Numbers:
    """A mean over rows divided by num_replicas_in_sync, and scale_regularization_loss"""

    class Scaled(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = layers.Dense(6, "tanh", kernel_regularizer="l2")
            self.out = layers.Dense(1)

        def call(self, x: Any) -> Any:
            return self.out(self.hidden(x))

        def train_step(self, data: Any) -> dict[str, Any]:
            x, y = data
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            with tf.GradientTape() as tape:
                error = tf.reduce_mean(tf.square(y - self(x, training=True)))
                loss = error / replicas + tf.nn.scale_regularization_loss(tf.add_n(self.losses))
            of = self.trainable_variables
            self.optimizer.apply(tape.gradient(loss, of), of)
            return {"error": error}

    x, y = reals(24, 5), reals(24, 1, seed=2)
    with strategy.scope():
        model = Scaled()
        model.compile(keras.optimizers.SGD(0.2))
    run = model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    return {"history": run.history, "weights": weights(model)}


@program(3, always=True)
def features_gathered_by_hand(strategy: Any) -> Numbers:
    """An in-batch softmax of two towers that gathers features if there are several replicas"""

    class Towers(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.answer = layers.Dense(4), layers.Dense(4)

        def call(self, x: Any) -> Any:
            return self.query(x["query"]), self.answer(x["answer"])

        def train_step(self, data: Any) -> dict[str, Any]:
            with tf.GradientTape() as tape:
                query, answer = self(data, training=True)
                if tf.distribute.get_strategy().num_replicas_in_sync > 1:
                    context = tf.distribute.get_replica_context()
                    query = context.all_gather(query, axis=0)
                    answer = context.all_gather(answer, axis=0)
                scores = tf.matmul(query, answer, transpose_b=True)
                right = tf.range(tf.shape(scores)[0])
                rows = tf.nn.sparse_softmax_cross_entropy_with_logits(right, scores)
                loss = tf.reduce_mean(rows)
            of = self.trainable_variables
            self.optimizer.apply(tape.gradient(loss, of), of)
            return {"loss": loss}

    data = {"query": reals(24, 5), "answer": reals(24, 6, seed=3)}
    with strategy.scope():
        model = Towers()
        model.compile(keras.optimizers.SGD(0.2))
    run = model.fit(tf.data.Dataset.from_tensor_slices(data).batch(8), epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}


@program(3)
def weights_normalized_by_all_reduce(strategy: Any) -> Numbers:
    """Class weights that are divided by their sum over all replicas, with all_reduce by hand"""

    class Balanced(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.out = layers.Dense(3)

        def call(self, x: Any) -> Any:
            return self.out(x)

        def train_step(self, data: Any) -> dict[str, Any]:
            x, y = data
            weight = tf.gather([1.0, 2.0, 5.0], y)
            total = tf.reduce_sum(weight)
            context = tf.distribute.get_replica_context()
            if context is not None:
                total = context.all_reduce(tf.distribute.ReduceOp.SUM, total)
            with tf.GradientTape() as tape:
                rows = tf.nn.sparse_softmax_cross_entropy_with_logits(y, self(x, training=True))
                loss = tf.reduce_sum(rows * weight) / total
            of = self.trainable_variables
            self.optimizer.apply(tape.gradient(loss, of), of)
            return {"total": total}

    x, y = reals(22, 5), labels(3, 22)
    with strategy.scope():
        model = Balanced()
        model.compile(keras.optimizers.SGD(0.3))
    run = model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    return {"history": run.history, "weights": weights(model)}


@program(3)
def rows_reduced_by_hand(strategy: Any) -> Numbers:
    """all_reduce by hand of one number per row, whose shape is not known when the step is traced"""

    class Sums(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = layers.Dense(2)
            self.dense.build((None, 3))
            self.built = True

        def call(self, x: Any) -> Any:
            return self.dense(x)

        def train_step(self, data: Any) -> dict[str, Any]:
            x, _ = data
            rows = tf.reduce_sum(self(x), axis=1)
            total = tf.distribute.get_replica_context().all_reduce("SUM", rows)
            return {"total": tf.reduce_sum(total)}

    x = reals(16, 3)
    with strategy.scope():
        model = Sums()
        model.compile(keras.optimizers.SGD(0.1))
    run = model.fit(x, x[:, :2], batch_size=8, epochs=1, shuffle=False, verbose=0)
    return {"history": run.history}
