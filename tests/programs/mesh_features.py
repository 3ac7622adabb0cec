"""Kind 15: what stopped on a mesh."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from tests.programs.data import labels, reals, weights
from tests.programs.program import Numbers, program


@program(15, always=True)
def default_optimizer_with_words(strategy: Any) -> Numbers:
    """RMSprop, what compile takes by itself, with an Embedding and an LSTM"""
    x, y = labels(11, 22, 6), labels(2, 22, 1, seed=4).astype("float32")
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((None,), dtype="int32"),
                layers.Embedding(11, 6, mask_zero=True),
                layers.LSTM(5),
                layers.Dense(1, "sigmoid"),
            ]
        )
        model.compile(loss="binary_crossentropy", metrics=["accuracy"])
    run = model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}


@program(15)
def adadelta_with_factors(strategy: Any) -> Numbers:
    """Matrix factorization with Adadelta and Adagrad"""
    found = {}
    pairs, y = labels(8, 24, 2), reals(24, 1, seed=3)

    class Factors(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.users, self.items = layers.Embedding(8, 4), layers.Embedding(8, 4)

        def call(self, x: Any) -> Any:
            return ops.sum(self.users(x[:, 0]) * self.items(x[:, 1]), axis=1, keepdims=True)

    for name, optimizer in {
        "adadelta": lambda: keras.optimizers.Adadelta(1.0),
        "adagrad": lambda: keras.optimizers.Adagrad(0.1),
    }.items():
        with strategy.scope():
            model = Factors()
            model.compile(optimizer(), "mse")
        run = model.fit(pairs, y, batch_size=8, epochs=2, verbose=0)
        found[name] = [run.history, weights(model)]
    return found


@program(15)
def read_and_decoded(strategy: Any) -> Numbers:
    """keras.losses.CTC compiled, predictions decoded greedily"""
    x, y = reals(18, 8, 5), labels(4, 18, 3) + 1
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((8, 5)),
                layers.Conv1D(6, 3, padding="same", activation="tanh"),
                layers.Dense(6),
            ]
        )
        model.compile(keras.optimizers.SGD(0.02), keras.losses.CTC())
    run = model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    spoken = model.predict(x[:6], verbose=0)
    decoded, _ = ops.ctc_decode(spoken, np.full(6, 8), strategy="greedy", mask_index=0)
    return {"history": run.history, "decoded": np.array(decoded[0]), "weights": weights(model)}


@program(15)
def noise_repeats_itself(strategy: Any) -> Numbers:
    """Noise of tf.random and keras.random in a layer and a step: seeded runs repeat, rows differ"""

    class Noisy(layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.seeds = keras.random.SeedGenerator(5)

        def call(self, x: Any, training: bool = False) -> Any:
            if not training:
                return x
            drawn = keras.random.normal(ops.shape(x), seed=self.seeds)
            return x + 0.1 * drawn + 0.1 * tf.random.normal(tf.shape(x))

    def trained() -> tuple[Any, Any]:
        keras.utils.set_random_seed(11)
        with strategy.scope():
            model = keras.Sequential([keras.Input((4,)), Noisy(), layers.Dense(2)])
            model.compile(keras.optimizers.SGD(0.1), "mse")
        model.fit(reals(16, 4), reals(16, 2, seed=3), batch_size=8, epochs=2, verbose=0)
        return model.get_weights(), model.predict(reals(5, 4), verbose=0)

    first, second = trained(), trained()
    same = all(np.array_equal(a, b) for a, b in zip(first[0], second[0], strict=True))
    return {"repeats": same, "finite": bool(np.isfinite(first[1]).all())}


@program(15)
def augmentation_in_scope(strategy: Any) -> Numbers:
    """Random image layers made in the scope: in dataset.map, and in a model at inference"""
    x, y = reals(20, 8, 8, 1), labels(3, 20)
    with strategy.scope():
        augment = keras.Sequential([layers.RandomFlip(), layers.RandomRotation(0.1)])
        scale = layers.Normalization()
        scale.adapt(x)
        model = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                layers.RandomZoom(0.2),
                layers.Conv2D(3, 3, activation="tanh"),
                layers.Flatten(),
                layers.Dense(3),
            ]
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1), loss)
    before = model.predict(scale(x[:4]), verbose=0)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    data = data.map(lambda image, label: (augment(scale(image), training=True), label))
    history = model.fit(data, epochs=2, verbose=0).history
    return {
        "before": before,
        "finite": bool(np.isfinite(history["loss"]).all()),
        "steps": int(model.optimizer.iterations.numpy()),
    }


@program(15, undivided=True)
def sparse_rows(strategy: Any) -> Numbers:
    """A bag of words as tf.SparseTensor, in the dataset and as x"""
    dense = (labels(5, 22, 12) == 0).astype("float32")
    y = labels(2, 22, 1).astype("float32")
    with strategy.scope():
        inputs = keras.Input((12,), sparse=True)
        model = keras.Model(inputs, layers.Dense(1, "sigmoid")(inputs))
        model.compile(keras.optimizers.SGD(0.5), "binary_crossentropy")
    data = tf.data.Dataset.from_tensor_slices((tf.sparse.from_dense(dense), y)).batch(8)
    run = model.fit(data, epochs=2, verbose=0)
    predicted = model.predict(tf.sparse.from_dense(dense[:5]), verbose=0)
    return {"history": run.history, "predict": predicted, "weights": weights(model)}


@program(15, undivided=True)
def padded_batches_of_each_length(strategy: Any) -> Numbers:
    """A GRU over padded_batch: every batch has a length of its own"""
    lengths = [3, 5, 2, 4, 6, 3, 2, 5, 4, 3, 6, 2, 5, 4]
    x = [labels(9, n, seed=i) + 1 for i, n in enumerate(lengths)]
    y = labels(3, len(lengths))
    data = tf.data.Dataset.from_generator(
        lambda: zip(x, y, strict=True),
        output_signature=(tf.TensorSpec((None,), tf.int32), tf.TensorSpec((), tf.int32)),
    ).padded_batch(4)
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((None,), dtype="int32"),
                layers.Embedding(11, 6, mask_zero=True),
                layers.Bidirectional(layers.GRU(4)),
                layers.Dense(3),
            ]
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.2), loss)
    run = model.fit(data, epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}


class FusedAttention(layers.Layer):
    """Queries, keys and values from one Dense, split afterwards."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.qkv, self.out = layers.Dense(3 * width), layers.Dense(width)

    def call(self, x: Any) -> Any:
        rows, steps = ops.shape(x)[0], ops.shape(x)[1]
        parts = ops.split(self.qkv(x), 3, axis=-1)
        shape = (rows, steps, self.heads, self.width // self.heads)
        q, k, v = (ops.transpose(ops.reshape(p, shape), (0, 2, 1, 3)) for p in parts)
        scores = ops.softmax(ops.matmul(q, ops.transpose(k, (0, 1, 3, 2))) / 2.0)
        h = ops.reshape(
            ops.transpose(ops.matmul(scores, v), (0, 2, 1, 3)), (rows, steps, self.width)
        )
        return self.out(h)


@program(15, always=True)
def fused_queries_keys_values(strategy: Any) -> Numbers:
    """A transformer whose queries, keys and values are one Dense that is split"""
    x, y = reals(18, 4, 8), labels(3, 18)
    with strategy.scope():
        inputs = keras.Input((4, 8))
        h = inputs + FusedAttention(8, 2)(layers.LayerNormalization()(inputs))
        h = h + layers.Dense(8)(layers.Dense(16, "gelu")(layers.LayerNormalization()(h)))
        model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(h)))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])
    run = model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}


@program(15)
def mean_and_variance_from_one_layer(strategy: Any) -> Numbers:
    """A density network: one Dense split into mean and log variance, sliced in the loss"""

    def likelihood(y_true: Any, y_pred: Any) -> Any:
        mean, log_var = y_pred[:, :2], y_pred[:, 2:]
        return ops.mean(log_var + ops.square(y_true - mean) * ops.exp(-log_var), axis=-1)

    x, y = reals(22, 5), reals(22, 2, seed=4)
    with strategy.scope():
        inputs = keras.Input((5,))
        both = layers.Dense(4)(layers.Dense(8, "tanh")(inputs))
        mean, log_var = ops.split(both, 2, axis=-1)
        model = keras.Model(inputs, layers.Concatenate()([mean, ops.clip(log_var, -3.0, 3.0)]))
        model.compile(keras.optimizers.SGD(0.05), likelihood)
    run = model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}


@program(15)
def rows_like_rows(strategy: Any) -> Numbers:
    """matmul(p, p, transpose_b=True) in a loss: rows that are alike shall be told alike"""

    def alike(y_true: Any, y_pred: Any) -> Any:
        told = tf.matmul(y_pred, y_pred, transpose_b=True)
        right = tf.matmul(y_true, y_true, transpose_b=True)
        return tf.reduce_mean(tf.square(told - right))

    x, y = reals(22, 5), reals(22, 3, seed=4)
    with strategy.scope():
        model = keras.Sequential([keras.Input((5,)), layers.Dense(8, "tanh"), layers.Dense(3)])
        model.compile(keras.optimizers.SGD(0.02), alike)
    run = model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}


@program(15)
def grouped_convolution_called(strategy: Any) -> Numbers:
    """Grouped and depthwise convolutions: called as model(x), and trained"""
    x, y = reals(18, 6, 6, 4), labels(3, 18)
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((6, 6, 4)),
                layers.Conv2D(4, 3, groups=2, activation="tanh"),
                layers.DepthwiseConv2D(3),
                layers.GlobalAveragePooling2D(),
                layers.Dense(3),
            ]
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1), loss)
    before = np.asarray(model(x[:4]))
    run = model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    return {"before": before, "history": run.history, "after": np.asarray(model(x[:4]))}


@program(15)
def one_loss_for_two_outputs(strategy: Any) -> Numbers:
    """A Loss instance shared by two outputs of a dict"""
    x, left, right = reals(22, 5), reals(22, 2, seed=3), reals(22, 1, seed=4)
    with strategy.scope():
        inputs = keras.Input((5,))
        h = layers.Dense(6, "tanh")(inputs)
        outputs = {
            "left": layers.Dense(2, name="left")(h),
            "right": layers.Dense(1, name="right")(h),
        }
        model = keras.Model(inputs, outputs)
        shared = keras.losses.Huber()
        model.compile(keras.optimizers.SGD(0.2), {"left": shared, "right": shared})
    y = {"left": left, "right": right}
    run = model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}
