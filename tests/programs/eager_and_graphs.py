"""Kind 9: tensors kept on `self` in eager steps, graph networks, new axes, integer types."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import layers, ops

from tests.programs.data import labels, reals, weights
from tests.programs.program import Numbers, program


@program(9, always=True, undivided=True)
def features_kept_on_self(strategy: Any) -> Numbers:
    """run_eagerly, a step that keeps a hidden feature on self and penalizes it afterwards"""

    class Keeps(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.out = layers.Dense(5, "tanh"), layers.Dense(2)
            self.seen = None

        def call(self, x: Any) -> Any:
            self.seen = self.hidden(x)
            return self.out(self.seen)

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            base = super().compute_loss(*args, **kwargs)
            return base + 0.1 * ops.mean(ops.square(self.seen))

    x, y = reals(22, 4), reals(22, 2, seed=2)
    with strategy.scope():
        model = Keeps()
        model.compile(keras.optimizers.SGD(0.2), "mse", run_eagerly=True)
    run = model.fit(x, y, batch_size=8, epochs=2, validation_data=(x[:5], y[:5]), verbose=0)
    return {"history": run.history, "weights": weights(model)}


@program(9, undivided=True)
def eager_step_with_two_passes(strategy: Any) -> Numbers:
    """run_eagerly, a train_step that keeps tensors on self between a gradient and a second one"""

    class Twice(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = layers.Dense(4, "tanh"), layers.Dense(1)

        def call(self, x: Any) -> Any:
            return self.b(self.a(x))

        def train_step(self, data: Any) -> dict[str, Any]:
            self.x, self.y = data
            with tf.GradientTape() as tape:
                self.error = tf.reduce_mean(tf.abs(self.y - self(self.x, training=True)))
            self.optimizer.apply(
                tape.gradient(self.error, self.b.trainable_variables), self.b.trainable_variables
            )
            with tf.GradientTape() as tape:
                self.after = tf.reduce_mean(tf.square(self.y - self(self.x, training=True)))
            self.other.apply(
                tape.gradient(self.after, self.a.trainable_variables), self.a.trainable_variables
            )
            return {"error": self.error, "after": self.after}

    x, y = reals(24, 4), reals(24, 1, seed=2)
    with strategy.scope():
        model = Twice()
        model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
        model.other = keras.optimizers.SGD(0.2)
    run = model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}


class GraphConvolution(layers.Layer):
    """Means over the neighbours of each node; nodes are the first axis inside."""

    def __init__(self, edges: tuple[list[int], list[int]], nodes: int, units: int) -> None:
        super().__init__()
        self.edges, self.nodes = edges, nodes
        self.own, self.theirs = layers.Dense(units), layers.Dense(units)

    def call(self, x: Any) -> Any:
        of = tf.gather(x, self.edges[1])
        mean = tf.math.unsorted_segment_mean(of, self.edges[0], num_segments=self.nodes)
        return tf.nn.relu(tf.concat([self.own(x), self.theirs(mean)], axis=-1))


@program(9)
def graph_network_with_lstm(strategy: Any) -> Numbers:
    """Traffic on a graph of roads: nodes on the first axis, an LSTM, a forecast of each"""

    class Forecast(layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            edges = ([0, 0, 1, 2, 3, 4, 4], [1, 2, 0, 0, 4, 3, 2])
            self.graph = GraphConvolution(edges, 5, 3)
            self.lstm = layers.LSTM(8, activation="relu")
            self.out = layers.Dense(2)

        def call(self, x: Any) -> Any:
            h = self.graph(tf.transpose(x, [2, 0, 1, 3]))
            shape = tf.shape(h)
            h = self.lstm(tf.reshape(h, (shape[0] * shape[1], shape[2], 6)))
            h = tf.reshape(self.out(h), (shape[0], shape[1], 2))
            return tf.transpose(h, [1, 2, 0])

    x, y = reals(22, 6, 5, 1), reals(22, 2, 5, seed=3)
    with strategy.scope():
        inputs = keras.Input((6, 5, 1))
        model = keras.Model(inputs, Forecast()(inputs))
        model.compile(keras.optimizers.SGD(0.1), "mse")
    run = model.fit(x, y, batch_size=8, epochs=2, validation_data=(x[:7], y[:7]), verbose=0)
    return {
        "history": run.history,
        "predict": model.predict(x, batch_size=8, verbose=0),
        "weights": weights(model),
    }


@program(9, always=True)
def new_axes(strategy: Any) -> Numbers:
    """t[:, None], t[None], t[..., None] and single places of tensors in a layer and in a loss"""

    class Pairs(layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.scale = self.add_weight(shape=(4,), initializer="ones")

        def call(self, x: Any) -> Any:
            scaled = x * ops.convert_to_tensor(self.scale)[None]
            apart = scaled[:, :, None] - scaled[:, None, :]
            return (apart**2)[..., None][:, :, :, 0], x[:, 0], x[:, -1, None], x[:, ::-1]

    def weighted(y_true: Any, y_pred: Any) -> Any:
        return ops.mean((y_true[..., None] - y_pred[:, None]) ** 2, axis=(1, 2))

    x, y = reals(21, 4), reals(21, 1, seed=2)
    with strategy.scope():
        inputs = keras.Input((4,))
        squares, first, last, turned = Pairs()(inputs)
        parts = [layers.Flatten()(squares), layers.Reshape((1,))(first), last, turned]
        model = keras.Model(inputs, layers.Dense(1)(layers.Concatenate()(parts)))
        model.compile(keras.optimizers.SGD(0.01), weighted)
    run = model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}


@program(9)
def integers_of_two_types(strategy: Any) -> Numbers:
    """int64 labels compared with an int32 argmax in a loss and in a metric"""

    def costs(y_true: Any, y_pred: Any) -> Any:
        y_true = ops.cast(ops.squeeze(y_true, -1), "int64")
        right = ops.cast(
            ops.equal(ops.cast(ops.argmax(y_pred, axis=-1), "int64"), y_true), "float32"
        )
        rows = keras.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)
        return rows * (2.0 - right)

    def far_away(y_true: Any, y_pred: Any) -> Any:
        chosen = ops.cast(ops.argmax(y_pred, axis=-1), "int64")
        return ops.cast(ops.abs(ops.cast(ops.squeeze(y_true, -1), "int64") - chosen), "float32")

    x, y = reals(23, 4), labels(3, 23, 1).astype("int64")
    with strategy.scope():
        model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
        model.compile(keras.optimizers.SGD(0.1), costs, metrics=[far_away])
    run = model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}
