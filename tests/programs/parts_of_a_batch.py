"""Kind 8: parts of a batch that differ in their numbers of rows."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import layers, ops

from tests.programs.data import labels, reals, weights
from tests.programs.program import Numbers, program


@program(8, always=True)
def labelled_and_unlabelled(strategy: Any) -> Numbers:
    """Semi-supervised: batches of 4 rows with labels beside 8 without, in one train_step"""

    class Semi(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.body = keras.Sequential(
                [keras.Input((5,)), layers.Dense(6, "tanh"), layers.Dense(3)]
            )

        def call(self, x: Any) -> Any:
            return self.body(x)

        def train_step(self, data: Any) -> dict[str, Any]:
            (x, y), free = data
            with tf.GradientTape() as tape:
                rows = tf.nn.sparse_softmax_cross_entropy_with_logits(y, self(x, training=True))
                sure = tf.nn.softmax(self(free, training=True))
                entropy = -tf.reduce_sum(sure * tf.math.log(sure + 1e-6), axis=1)
                loss = tf.reduce_mean(rows) + 0.5 * tf.reduce_mean(entropy)
            of = self.trainable_variables
            self.optimizer.apply(tape.gradient(loss, of), of)
            return {"loss": loss}

    some = tf.data.Dataset.from_tensor_slices((reals(16, 5), labels(3, 16))).batch(4)
    many = tf.data.Dataset.from_tensor_slices(reals(32, 5, seed=3)).batch(8)
    with strategy.scope():
        model = Semi()
        model.compile(keras.optimizers.SGD(0.3))
    run = model.fit(tf.data.Dataset.zip((some, many)), epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}


@program(8)
def several_negatives_a_row(strategy: Any) -> Numbers:
    """A ranker whose batch holds three negatives for each row in one longer part"""

    class Ranker(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.score = keras.Sequential(
                [keras.Input((4,)), layers.Dense(5, "tanh"), layers.Dense(1)]
            )

        def call(self, x: Any) -> Any:
            good = self.score(x["good"])
            bad = ops.reshape(self.score(x["bad"]), (-1, 3))
            return ops.concatenate([good, bad], axis=1)

    data = tf.data.Dataset.from_tensor_slices((reals(18, 4), reals(18, 3, 4, seed=3)))
    data = data.batch(6).map(
        lambda good, bad: (
            {"good": good, "bad": tf.reshape(bad, (-1, 4))},
            tf.zeros(tf.shape(good)[0], tf.int32),
        )
    )
    with strategy.scope():
        model = Ranker()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.2), loss)
    run = model.fit(data, epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}
