"""Models to check, each a function that `tfaccel tpu check` calls."""

import os
import time

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


class Printing(layers.Layer):
    def call(self, x):
        tf.print("rows", x)  # the line to name
        return x


def printing():
    return keras.Sequential([keras.Input((4,)), Printing(name="says"), layers.Dense(2)])


class Drawn(layers.Layer):
    @tf.function
    def draw(self, x):
        return tf.random.stateless_gamma(tf.shape(x), [1, 2], 2.0)  # the line to name

    def call(self, x):
        return x + self.draw(x)


def inner_gamma():
    return keras.Sequential([keras.Input((4,)), Drawn(name="drawn"), layers.Dense(2)])


def rotated():
    image = [keras.Input((8, 8, 1)), layers.RandomRotation(0.1), layers.Flatten()]
    return keras.Sequential([*image, layers.Dense(2)])


def strings():
    return embedded("string", layers.StringLookup(vocabulary=["a", "b"]))


def integers():
    return embedded("int64", layers.IntegerLookup(vocabulary=[3, 4]))


def hashed():
    return embedded("string", layers.Hashing(10))


def embedded(dtype, look_up):
    x = keras.Input((1,), dtype=dtype)
    return keras.Model(x, layers.Dense(2)(layers.Embedding(11, 4)(look_up(x))))


def with_arguments(width, depth=2):
    return keras.Sequential([keras.Input((4,)), layers.Dense(width), layers.Dense(depth)])


def broken():
    raise KeyError("no such weights")  # the line to name


class Reconstruction(keras.Model):
    """A step of its own, without labels and without a loss to compile."""

    def __init__(self):
        super().__init__()
        self.code = layers.Dense(3)
        self.back = layers.Dense(6)
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, x):
        return self.back(self.code(x))

    def train_step(self, data):
        with tf.GradientTape() as tape:
            noise = keras.random.normal(tf.shape(data), seed=self.seeds)
            loss = tf.reduce_mean((self(data + noise) - data) ** 2)
        self.optimizer.apply(
            tape.gradient(loss, self.trainable_variables), self.trainable_variables
        )
        return {"loss": loss}


def reconstruction():
    model = Reconstruction()
    model.compile("adam")
    return model


class Labelled(keras.Model):
    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(abs(self(x, training=True) - y))
        self.optimizer.apply(
            tape.gradient(loss, self.trainable_variables), self.trainable_variables
        )
        return {"loss": loss}


def labelled():
    x = keras.Input((6,))
    model = Labelled(x, layers.Dense(2)(layers.Dropout(0.3)(x)))
    model.compile("adam")
    return model


def own_loss():
    def crossentropy(labels, logits):
        return keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)

    model = keras.Sequential([keras.Input((4,)), layers.Dense(5)])
    model.compile("adam", crossentropy)
    return model


def several():
    a, b = keras.Input((8,), name="a"), keras.Input((5,), dtype="int32", name="b")
    embedded = layers.Flatten()(layers.Embedding(9, 2)(b))
    h = layers.Concatenate()([layers.Dense(4)(a), embedded])
    outputs = {"x": layers.Dense(1, name="x")(h), "y": layers.Dense(7, name="y")(h)}
    model = keras.Model({"a": a, "b": b}, outputs)
    loss = {"x": "mse", "y": "sparse_categorical_crossentropy"}
    model.compile("adam", loss, metrics={"y": ["accuracy"], "x": [keras.metrics.AUC()]})
    return model


class Inner(layers.Layer):
    @tf.function
    def positive(self, x):
        return tf.reduce_sum(tf.boolean_mask(x, x > 0))

    def call(self, x):
        return x + self.positive(x)  # the call to name


def inner_mask():
    return keras.Sequential([keras.Input((4,)), Inner(name="inner"), layers.Dense(2)])


def aborts():
    os.abort()


def sleeps():
    time.sleep(60)
