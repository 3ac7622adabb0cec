"""Kind 1: losses that are about the global batch."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from tests.programs.data import labels, reals, shares, weights
from tests.programs.program import Numbers, program


@program(1, always=True)
def dice_segmentation(strategy: Any) -> Numbers:
    """A small network for masks with Keras's Dice, validated and predicted"""
    x = reals(22, 8, 8, 1)
    y = (x > 0.3).astype("float32")
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                layers.Conv2D(4, 3, padding="same", activation="tanh"),
                layers.Conv2D(1, 1, activation="sigmoid"),
            ]
        )
        model.compile(keras.optimizers.SGD(0.5), keras.losses.Dice(), metrics=["mae"])
    run = model.fit(x, y, batch_size=8, epochs=2, validation_split=0.2, verbose=0)
    return {
        "history": run.history,
        "evaluate": model.evaluate(x, y, batch_size=8, verbose=0),
        "predict": model.predict(x[:3], verbose=0),
        "weights": weights(model),
    }


@program(1)
def tversky_and_another_output(strategy: Any) -> Numbers:
    """Two outputs, Tversky for the rare class and a squared error, loss weights, sample weights"""
    x, rare, depth = reals(21, 6), (shares(21, 3) > 0.7).astype("float32"), reals(21, 1, seed=3)
    with strategy.scope():
        inputs = keras.Input((6,))
        h = layers.Dense(8, "tanh")(inputs)
        outputs = {
            "rare": layers.Dense(3, "sigmoid", name="rare")(h),
            "depth": layers.Dense(1, name="depth")(h),
        }
        model = keras.Model(inputs, outputs)
        model.compile(
            keras.optimizers.SGD(0.3, momentum=0.9),
            {"rare": keras.losses.Tversky(alpha=0.3, beta=0.7), "depth": "mse"},
            loss_weights={"rare": 2.0, "depth": 0.5},
        )
    data = tf.data.Dataset.from_tensor_slices((x, {"rare": rare, "depth": depth})).batch(8)
    run = model.fit(data, epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}


@program(1, always=True)
def correlation_loss(strategy: Any) -> Numbers:
    """One minus the concordance correlation of a batch, a function that returns one number"""

    def one_minus_concordance(y_true: Any, y_pred: Any) -> Any:
        a, b = ops.mean(y_true), ops.mean(y_pred)
        together = ops.mean((y_true - a) * (y_pred - b))
        return 1 - 2 * together / (ops.var(y_true) + ops.var(y_pred) + ops.square(a - b))

    x = reals(30, 5)
    y = (x[:, :1] - 0.5 * x[:, 1:2] + 0.1 * reals(30, 1, seed=5)).astype("float32")
    with strategy.scope():
        model = keras.Sequential([keras.Input((5,)), layers.Dense(6, "tanh"), layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.2), one_minus_concordance)
    run = model.fit(x, y, batch_size=12, epochs=2, validation_data=(x[:7], y[:7]), verbose=0)
    return {"history": run.history, "weights": weights(model)}


@program(1)
def loss_without_reduction(strategy: Any) -> Numbers:
    """A compiled loss with reduction="none", whose gradient is a sum over rows"""
    x, y = reals(20, 4), labels(3, 20)
    with strategy.scope():
        model = keras.Sequential([keras.Input((4,)), layers.Dense(8, "tanh"), layers.Dense(3)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")
        model.compile(keras.optimizers.SGD(0.05), loss)
    model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    return {"weights": weights(model), "predict": model.predict(x, batch_size=8, verbose=0)}


@program(1)
def all_padding_on_one_half(strategy: Any) -> Numbers:
    """A tagger of padded sentences, of which some rows hold nothing to count"""
    words, tags = labels(9, 20, 5) + 1, labels(4, 20, 5, seed=4)
    words[4:8], words[16:18] = 0, 0  # whole rows of padding: one replica's part of a batch
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((5,), dtype="int32"),
                layers.Embedding(11, 6, mask_zero=True),
                layers.Dense(4),
            ]
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.3), loss)
    run = model.fit(words, tags, batch_size=8, epochs=2, shuffle=False, verbose=0)
    return {"history": run.history, "weights": weights(model)}


@program(1)
def error_where_it_was_measured(strategy: Any) -> Numbers:
    """A mean over the entries that are no NaN: a quotient of two sums over the batch"""

    def measured_error(y_true: Any, y_pred: Any) -> Any:
        there = ops.logical_not(ops.isnan(y_true))
        error = ops.where(there, ops.square(ops.where(there, y_true, 0.0) - y_pred), 0.0)
        return ops.sum(error) / ops.sum(ops.cast(there, "float32"))

    x, y = reals(22, 4), reals(22, 3, seed=2)
    y[shares(22, 3) > 0.6] = np.nan
    y[:4] = np.nan
    with strategy.scope():
        model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
        model.compile(keras.optimizers.SGD(0.2), measured_error)
    run = model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    return {"history": run.history, "weights": weights(model)}


class BatchHardTriplets(keras.losses.Loss):
    """For each row its farthest friend and its nearest stranger in the batch."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        y_true = ops.reshape(y_true, (-1, 1))
        squares = ops.sum(ops.square(y_pred[:, None, :] - y_pred[None, :, :]), axis=-1)
        same = ops.cast(ops.equal(y_true, ops.transpose(y_true)), squares.dtype)
        friend = ops.max(squares * same, axis=1)
        stranger = ops.min(squares + 1e3 * same, axis=1)
        return ops.relu(friend - stranger + 0.5)


@program(1, always=True)
def hard_triplets(strategy: Any) -> Numbers:
    """Batch-hard triplets: a loss per row, over all rows of the batch"""
    x, y = reals(27, 6), labels(3, 27)
    with strategy.scope():
        model = keras.Sequential([keras.Input((6,)), layers.Dense(8, "tanh"), layers.Dense(4)])
        model.compile(keras.optimizers.SGD(0.1), BatchHardTriplets())
    run = model.fit(x, y, batch_size=12, epochs=2, validation_data=(x[:9], y[:9]), verbose=0)
    return {"history": run.history, "weights": weights(model)}


@program(1, undivided=True)
def supervised_contrastive(strategy: Any) -> Numbers:
    """A contrastive loss over rows of one class, written with TensorFlow, run eagerly"""

    def contrastive(y_true: Any, y_pred: Any) -> Any:
        features = tf.math.l2_normalize(y_pred, axis=1)
        logits = tf.matmul(features, features, transpose_b=True) / 0.5
        y_true = tf.reshape(y_true, (-1, 1))
        same = tf.cast(tf.equal(y_true, tf.transpose(y_true)), tf.float32)
        same = same / tf.reduce_sum(same, axis=1, keepdims=True)
        return tf.nn.softmax_cross_entropy_with_logits(labels=same, logits=logits)

    x, y = reals(20, 6), labels(3, 20)
    with strategy.scope():
        model = keras.Sequential([keras.Input((6,)), layers.Dense(5, "tanh"), layers.Dense(4)])
        model.compile(keras.optimizers.SGD(0.3), contrastive, run_eagerly=True)
    run = model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    return {"history": run.history, "weights": weights(model)}


@program(1, all_rows=True)
def rows_that_predict_each_other(strategy: Any) -> Numbers:
    """A recommender whose `call` sums over all rows, as Keras's own does: fit and predict"""

    class Recommender(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.users = layers.Embedding(9, 4, embeddings_initializer="he_normal")
            self.films = layers.Embedding(12, 4, embeddings_initializer="he_normal")
            self.bias = layers.Embedding(9, 1)

        def call(self, pairs: Any) -> Any:
            users, films = self.users(pairs[:, 0]), self.films(pairs[:, 1])
            return ops.sigmoid(ops.tensordot(users, films, 2) + self.bias(pairs[:, 0]))

    pairs = np.stack([labels(9, 34), labels(12, 34, seed=4)], axis=1)
    rated = shares(34)
    with strategy.scope():
        model = Recommender()
        model.compile(keras.optimizers.SGD(0.1), "binary_crossentropy")
    before = model.predict(pairs[:8], verbose=0)
    run = model.fit(pairs, rated, batch_size=8, epochs=2, shuffle=False, verbose=0)
    told = model.evaluate(pairs[:8], rated[:8], batch_size=4, verbose=0)
    after = model.predict(pairs[:13], batch_size=4, verbose=0)  # a last batch of one row
    history = {"history": run.history, "evaluated": told, "predicted": after}
    return {**history, "weights": weights(model), "of": before.shape}


class Orthogonal(keras.regularizers.Regularizer):
    """Keeps transforms orthogonal, as PointNet's: its product is of every row with every row."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, x: Any) -> Any:
        x = ops.reshape(x, (-1, self.size, self.size))
        products = ops.reshape(ops.tensordot(x, x, axes=(2, 2)), (-1, self.size, self.size))
        return ops.sum(0.01 * ops.square(products - ops.eye(self.size)))


@program(1, all_rows=True)
def orthogonal_transforms(strategy: Any) -> Numbers:
    """PointNet: Keras's layers alone, with an activity regularizer that multiplies rows by rows"""
    x, y = reals(20, 10, 3), labels(4, 20)
    with strategy.scope():
        points = keras.Input((10, 3))
        hidden = layers.Conv1D(8, 1, activation="relu")(points)
        hidden = layers.GlobalMaxPooling1D()(hidden)
        identity = keras.initializers.Constant(np.eye(3).flatten())
        transform = layers.Dense(9, bias_initializer=identity, activity_regularizer=Orthogonal(3))(
            hidden
        )
        turned = layers.Dot(axes=(2, 1))([points, layers.Reshape((3, 3))(transform)])
        hidden = layers.GlobalMaxPooling1D()(layers.Conv1D(8, 1, activation="relu")(turned))
        model = keras.Model(points, layers.Dense(4, "softmax")(hidden))
        model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    run = model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0, validation_split=0.2)
    return {"history": run.history, "weights": weights(model)}


@program(1, all_rows=True)
def rows_compared_between_layers(strategy: Any) -> Numbers:
    """Keras's layers that compare rows: an activation, keras.ops between layers, Softmax(axis=0)"""

    def centred(x: Any) -> Any:
        return x - ops.mean(x, axis=0, keepdims=True)

    def by_operations(inputs: Any) -> Any:
        hidden = layers.Dense(8)(inputs)
        return hidden - ops.mean(hidden, axis=0, keepdims=True)

    stacks: dict[str, Any] = {
        "activation": lambda inputs: layers.Dense(8, activation=centred)(inputs),
        "operations": by_operations,
        "axis": lambda inputs: layers.Softmax(axis=0)(layers.Dense(8)(inputs)),
    }
    x, y, found = reals(20, 6), reals(20, 2, seed=1), {}
    for name, stack in stacks.items():
        keras.utils.set_random_seed(3)
        with strategy.scope():
            inputs = keras.Input((6,))
            model = keras.Model(inputs, layers.Dense(2)(stack(inputs)))
            model.compile("sgd", "mse")
        run = model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        predicted = model.predict(x, batch_size=8, verbose=0)
        found[name] = {"history": run.history, "weights": weights(model), "predicted": predicted}
    return found
