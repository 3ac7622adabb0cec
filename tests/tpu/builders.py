"""Models to check, each a function that `tfaccel tpu check` calls."""

import keras
import tensorflow as tf
from keras import layers


def cnn():
    stem = [layers.Conv2D(16, 3, activation="relu"), layers.BatchNormalization()]
    model = keras.Sequential([keras.Input((32, 32, 3)), *stem, layers.Flatten(), layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss, metrics=["accuracy"])
    return model


def lstm():
    tokens = keras.Input((12,), dtype="int32")
    x = layers.LSTM(16)(layers.Embedding(50, 16)(tokens))
    return keras.Model(tokens, layers.Dense(1)(x))


def two_billion():
    """2.0e9 parameters; with Adam's slots 24 GB."""
    x = y = keras.Input((8192,))
    for _ in range(30):
        y = layers.Dense(8192, activation="relu")(y)
    return keras.Model(x, y)


def wide():
    """Activations that fit for a few rows only."""
    series = keras.Input((65536, 8))
    x = series
    for _ in range(4):
        x = layers.Dense(64, activation="relu")(x)
    return keras.Model(series, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))


class Python(layers.Layer):
    def call(self, x):
        y = tf.py_function(lambda a: a, [x], x.dtype)  # the line to name
        return tf.ensure_shape(y, x.shape)


def py_function():
    return keras.Sequential([keras.Input((4,)), Python(name="on_the_host"), layers.Dense(2)])


class Selected(layers.Layer):
    def call(self, x):
        return x - tf.reduce_mean(tf.boolean_mask(x, x > 0))  # the line to name


def boolean_mask():
    return keras.Sequential([keras.Input((4,)), Selected(name="positive"), layers.Dense(2)])


def unknown_length():
    return keras.Sequential([keras.Input((None, 4)), layers.LSTM(3)])


def no_model():
    return 3


class OwnCall(keras.Model):
    def __init__(self):
        super().__init__()
        self.top = layers.Dense(3)

    def call(self, x):
        return self.top(x)


def subclassed():
    return OwnCall()
