"""Kind 14: a last batch of fewer rows than replicas, and recurrent layers with state."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from tests.programs.data import labels, reals, weights
from tests.programs.program import Numbers, program


@program(14, always=True)
def last_row_through_convolutions(strategy: Any) -> Numbers:
    """Strided convolutions, pooling, upsampling and a fixed reshape; 17 rows in batches of 8"""
    x, y = reals(17, 8, 8, 2), labels(3, 17)
    with strategy.scope():
        inputs = keras.Input((8, 8, 2))
        h = layers.Conv2D(4, 3, strides=2, padding="same", activation="tanh")(inputs)
        h = layers.UpSampling2D()(layers.MaxPooling2D()(h))
        h = layers.Conv2DTranspose(3, 3, strides=2, padding="same")(h)
        h = layers.Conv2D(2, 3, strides=2)(h)
        h = layers.Reshape((9, 2))(h)
        model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(h)))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])
    run = model.fit(x, y, batch_size=8, epochs=2, validation_data=(x[:9], y[:9]), verbose=0)
    return {
        "history": run.history,
        "evaluate": model.evaluate(x, y, batch_size=8, verbose=0),
        "predict": model.predict(x, batch_size=8, verbose=0),
        "weights": weights(model),
    }


@program(14)
def last_row_through_sequences(strategy: Any) -> Numbers:
    """Attention, LSTM, a bidirectional GRU and normalization of layers; 9 rows in batches of 4"""
    x, y = reals(9, 5, 6), reals(9, 2, seed=3)
    with strategy.scope():
        inputs = keras.Input((5, 6))
        h = layers.LayerNormalization()(inputs + layers.MultiHeadAttention(2, 3)(inputs, inputs))
        h = layers.LSTM(5, return_sequences=True)(h)
        h = layers.Bidirectional(layers.GRU(4))(h)
        model = keras.Model(inputs, layers.Dense(2)(h))
        model.compile(keras.optimizers.SGD(0.1), "mse")
    run = model.fit(x, y, batch_size=4, epochs=2, verbose=0)
    return {
        "history": run.history,
        "evaluate": model.evaluate(x, y, batch_size=8, verbose=0),
        "predict": model.predict(x, batch_size=4, verbose=0),
        "weights": weights(model),
    }


@program(14)
def one_row_in_all(strategy: Any) -> Numbers:
    """Batches of one row, and a custom step that reshapes by the number of rows"""

    class Patches(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.out = layers.Dense(4, "tanh"), layers.Dense(1)

        def call(self, x: Any) -> Any:
            patches = ops.image.extract_patches(x, 4)
            flat = ops.reshape(patches, (ops.shape(x)[0], 4, 16))
            return self.out(ops.mean(self.inner(flat), axis=1))

    x, y = reals(3, 8, 8, 1), reals(3, 1, seed=2)
    with strategy.scope():
        model = Patches()
        model.compile(keras.optimizers.SGD(0.1), "mse")
    run = model.fit(x, y, batch_size=1, epochs=2, verbose=0)
    return {
        "history": run.history,
        "predict": model.predict(x, batch_size=2, verbose=0),
        "weights": weights(model),
    }


@program(
    14,
    refused={
        "mirrored": "layer 'lstm' is stateful",
        "workers": "layer 'lstm' is stateful",
    },
)
def recurrent_with_state(strategy: Any) -> Numbers:
    """A stateful LSTM with the global batch shape, its state reset between epochs"""
    x, y = reals(16, 4, 3), reals(16, 1, seed=3)
    with strategy.scope():
        lstm = layers.LSTM(5, stateful=True, name="lstm")
        model = keras.Sequential([keras.Input(batch_shape=(8, 4, 3)), lstm, layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.1), "mse")
    found = []
    for _ in range(2):
        found.append(model.fit(x, y, batch_size=8, shuffle=False, verbose=0).history)
        lstm.reset_state()
    return {"found": found, "weights": weights(model.trainable_variables)}
