"""Kind 5: rows of an `Embedding` that come up more than once in a batch."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import layers, ops

from tests.programs.data import labels, one_hot, reals, weights
from tests.programs.program import Numbers, program


class TokenAndPosition(layers.Layer):
    """Embeds tokens and, with `arange(length)`, their places: every row looks up every place."""

    def __init__(self, length: int, words: int, width: int) -> None:
        super().__init__()
        self.tokens = layers.Embedding(words, width)
        self.places = layers.Embedding(length, width)

    def call(self, x: Any) -> Any:
        return self.tokens(x) + self.places(ops.arange(ops.shape(x)[-1]))


@program(5, always=True)
def positions_with_adam(strategy: Any) -> Numbers:
    """Token and position embeddings, attention, Adam"""
    x, y = labels(12, 22, 6), labels(2, 22, 1, seed=5).astype("float32")
    with strategy.scope():
        inputs = keras.Input((6,), dtype="int32")
        h = TokenAndPosition(6, 12, 8)(inputs)
        h = layers.LayerNormalization()(h + layers.MultiHeadAttention(2, 4)(h, h))
        outputs = layers.Dense(1, "sigmoid")(layers.GlobalAveragePooling1D()(h))
        model = keras.Model(inputs, outputs)
        model.compile(keras.optimizers.Adam(0.01), "binary_crossentropy", metrics=["accuracy"])
    run = model.fit(x, y, batch_size=8, epochs=2, validation_data=(x[:7], y[:7]), verbose=0)
    # The bias of attention's keys has a gradient of zero, of which Adam makes steps of noise.
    kept = [v for v in model.variables if "key/bias" not in v.path]
    return {"history": run.history, "weights": weights(kept)}


@program(5)
def one_table_for_two_towers(strategy: Any) -> Numbers:
    """A table looked up twice in a row, by a user and by an item of the same catalogue; Adagrad"""
    left, right, y = labels(9, 26, 1), labels(9, 26, 1, seed=6), reals(26, 1, seed=3)
    with strategy.scope():
        a, b = keras.Input((1,), dtype="int32"), keras.Input((1,), dtype="int32")
        table, bias = layers.Embedding(9, 5), layers.Embedding(9, 1)
        score = layers.Dot(axes=-1)([layers.Flatten()(table(a)), layers.Flatten()(table(b))])
        score = score + layers.Flatten()(bias(a)) + layers.Flatten()(bias(b))
        model = keras.Model([a, b], score)
        model.compile(keras.optimizers.Adagrad(0.1), "mse")
    run = model.fit([left, right], y, batch_size=8, epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}


@program(5)
def tied_table_clipped(strategy: Any) -> Numbers:
    """A language model whose table is its output too, with RMSprop and gradients clipped by norm"""

    class Tied(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.table = layers.Embedding(10, 6)
            self.places = layers.Embedding(5, 6)
            self.mix = layers.Dense(6, "tanh")

        def call(self, x: Any) -> Any:
            h = self.mix(self.table(x) + self.places(ops.arange(5)))
            return ops.matmul(h, ops.transpose(ops.convert_to_tensor(self.table.embeddings)))

    x = labels(10, 20, 6)
    with strategy.scope():
        model = Tied()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.RMSprop(0.01, clipnorm=0.05), loss)
    run = model.fit(x[:, :-1], x[:, 1:], batch_size=8, epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}


@program(5)
def frequent_words_clipped(strategy: Any) -> Numbers:
    """A bag of words in which one word is in every row, SGD with momentum and clipped values"""
    x, y = labels(6, 25, 4), one_hot(3, 25)
    x[:, 0] = 1
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((4,), dtype="int32"),
                layers.Embedding(6, 5),
                layers.GlobalAveragePooling1D(),
                layers.Dense(3, "softmax"),
            ]
        )
        optimizer = keras.optimizers.SGD(0.5, momentum=0.9, nesterov=True, global_clipnorm=0.1)
        model.compile(optimizer, "categorical_crossentropy")
    run = model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}


@program(5, always=True)
def a_table_trained_twice_in_a_step(strategy: Any) -> Numbers:
    """Captions of an image one after the other: an Embedding has a tape and an update for each"""

    class Captions(keras.Model):
        def __init__(self, decoder: keras.Model) -> None:
            super().__init__()
            self.decoder = decoder

        def train_step(self, words: Any) -> dict[str, Any]:
            of, said = self.decoder.trainable_variables, {}
            for i in range(2):
                before, after = words[:, i, :-1], words[:, i, 1:]
                with tf.GradientTape() as tape:
                    # Keras asserts in the graph that both have as many rows.
                    loss = tf.reduce_mean(self.loss(after, self.decoder(before, training=True)))
                self.optimizer.apply_gradients(zip(tape.gradient(loss, of), of, strict=True))
                said[f"caption {i}"] = loss
            return said

    words = labels(12, 22, 2, 6)
    with strategy.scope():
        inputs = keras.Input((None,), dtype="int32")
        h = layers.Dense(12, "softmax")(layers.Embedding(12, 5)(inputs))
        model = Captions(keras.Model(inputs, h))
        loss = keras.losses.SparseCategoricalCrossentropy(reduction="none")
        model.compile(keras.optimizers.Adam(0.05), loss)
    run = model.fit(tf.data.Dataset.from_tensor_slices(words).batch(8), epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}
