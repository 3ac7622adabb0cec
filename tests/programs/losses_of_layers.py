"""Kind 2: `add_loss` of one value per row."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from tests.programs.data import labels, reals, weights
from tests.programs.program import Numbers, program


class CtcEndpoint(layers.Layer):
    """Adds the CTC loss of each row, as models of handwriting do."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        rows, steps = ops.shape(y_pred)[0], ops.shape(y_pred)[1]
        long = ops.ones((rows,), "int32")
        cost = ops.ctc_loss(y_true, y_pred, long * ops.shape(y_true)[1], long * steps, mask_index=0)
        self.add_loss(cost)
        return ops.softmax(y_pred)


@program(2, always=True)
def words_read_with_ctc(strategy: Any) -> Numbers:
    """A recurrent reader with a layer that adds a CTC loss for each row"""
    x, y = reals(14, 8, 5), labels(4, 14, 3) + 1
    with strategy.scope():
        pages, text = (
            keras.Input((8, 5), name="pages"),
            keras.Input((3,), dtype="int32", name="text"),
        )
        h = layers.Bidirectional(layers.LSTM(6, return_sequences=True))(pages)
        model = keras.Model([pages, text], CtcEndpoint()(text, layers.Dense(6)(h)))
        model.compile(keras.optimizers.SGD(0.01))
    run = model.fit([x, y], batch_size=6, epochs=2, verbose=0)
    return {
        "history": run.history,
        "predict": model.predict([x[:3], y[:3]], verbose=0),
        "weights": weights(model),
    }


class Reconstructs(layers.Layer):
    """A bottleneck that is told how far each row is from what it was."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.down = layers.Dense(units, "tanh")
        self.up = layers.Dense(6)

    def call(self, x: Any) -> Any:
        h = self.down(x)
        self.add_loss(0.1 * ops.sum(ops.square(self.up(h) - x), axis=-1))
        return h


@program(2)
def reconstruction_of_each_row(strategy: Any) -> Numbers:
    """A classifier whose bottleneck adds a vector of reconstruction errors to a compiled loss"""
    x, y = reals(26, 6), labels(3, 26)
    with strategy.scope():
        model = keras.Sequential([keras.Input((6,)), Reconstructs(4), layers.Dense(3)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.02), loss, metrics=["accuracy"])
    run = model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    return {
        "history": run.history,
        "evaluate": model.evaluate(x, y, batch_size=8, verbose=0),
        "weights": weights(model),
    }


class KeepsNear(layers.Layer):
    """Adds a column of penalties, one per row, and a mean over rows."""

    def call(self, x: Any) -> Any:
        self.add_loss(0.01 * ops.sum(ops.square(x), axis=1, keepdims=True))
        self.add_loss(0.1 * ops.mean(ops.abs(x)))
        return x


@program(2)
def penalties_of_both_shapes(strategy: Any) -> Numbers:
    """A layer that adds a column of penalties and a mean, besides a kernel regularizer"""
    x, y = reals(19, 5), reals(19, 2, seed=3)
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((5,)),
                layers.Dense(6, "tanh", kernel_regularizer=keras.regularizers.L2(0.01)),
                KeepsNear(),
                layers.Dense(2),
            ]
        )
        model.compile(keras.optimizers.SGD(0.05), "mse")
    run = model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}
