"""Kind 13: models that hold layers of strings."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tests.programs.data import labels, phrases, reals, weights
from tests.programs.program import Numbers, program


@program(13, always=True)
def reviews_from_raw_text(strategy: Any) -> Numbers:
    """An end-to-end classifier of raw texts: TextVectorization is its first layer"""
    texts, y = phrases(24), labels(2, 24).astype("float32")
    with strategy.scope():
        vectorize = layers.TextVectorization(20, output_mode="int", output_sequence_length=6)
        vectorize.adapt(texts)
        inputs = keras.Input((1,), dtype="string")
        h = layers.Embedding(20, 6)(vectorize(inputs))
        h = layers.GlobalMaxPooling1D()(layers.Conv1D(5, 3, activation="relu")(h))
        model = keras.Model(inputs, layers.Dense(1, "sigmoid")(h))
        model.compile(keras.optimizers.SGD(0.5), "binary_crossentropy", metrics=["accuracy"])
    data = tf.data.Dataset.from_tensor_slices((texts[:, None], y)).batch(7)
    run = model.fit(data, epochs=2, validation_data=data.take(1), verbose=0)
    return {
        "history": run.history,
        "evaluate": model.evaluate(data, verbose=0),
        "predict": model.predict(data, verbose=0),
        "weights": weights(model),
    }


@program(13, always=True)
def table_of_strings_and_numbers(strategy: Any) -> Numbers:
    """Wide and deep: StringLookup, IntegerLookup, Hashing and numbers as inputs of one model"""
    table = {
        "town": np.array([["Rome"], ["Oslo"], ["Bonn"], ["Lima"], ["Rome"]] * 5),
        "code": labels(6, 25, 1, seed=3).astype("int64") + 10,
        "street": np.array([[f"street {i % 9}"] for i in range(25)]),
        "size": reals(25, 2, seed=4),
    }
    y = reals(25, 1, seed=5)
    with strategy.scope():
        inputs = {
            "town": keras.Input((1,), dtype="string", name="town"),
            "code": keras.Input((1,), dtype="int64", name="code"),
            "street": keras.Input((1,), dtype="string", name="street"),
            "size": keras.Input((2,), name="size"),
        }
        town = layers.StringLookup(vocabulary=["Rome", "Oslo", "Bonn"], output_mode="one_hot")
        code = layers.IntegerLookup(vocabulary=list(range(10, 16)))
        street = layers.Hashing(num_bins=5)
        normal = layers.Normalization()
        normal.adapt(table["size"])
        parts = [
            town(inputs["town"]),
            layers.Flatten()(layers.Embedding(8, 3)(code(inputs["code"]))),
            layers.Flatten()(layers.Embedding(5, 2)(street(inputs["street"]))),
            normal(inputs["size"]),
        ]
        wide = layers.Concatenate()(parts)
        deep = layers.Dense(6, "tanh")(wide)
        model = keras.Model(inputs, layers.Dense(1)(layers.Concatenate()([wide, deep])))
        model.compile(keras.optimizers.SGD(0.1), "mse")
    data = tf.data.Dataset.from_tensor_slices((table, y)).batch(8)
    run = model.fit(data, epochs=2, verbose=0)
    return {
        "history": run.history,
        "predict": model.predict(data, verbose=0),
        "weights": weights(model),
    }


@program(13, undivided=True)
def subclassed_reader(strategy: Any) -> Numbers:
    """A subclassed model that looks its strings up in call"""

    class Reader(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.lookup = layers.StringLookup(vocabulary=["ant", "bee", "cat"])
            self.table, self.out = layers.Embedding(4, 5), layers.Dense(1)

        def call(self, x: Any) -> Any:
            return self.out(layers.Flatten()(self.table(self.lookup(x))))

    words = np.array([["ant"], ["bee"], ["cat"], ["dog"]] * 5)
    y = reals(20, 1)
    with strategy.scope():
        model = Reader()
        model.compile(keras.optimizers.SGD(0.2), "mse")
    run = model.fit(tf.data.Dataset.from_tensor_slices((words, y)).batch(8), epochs=2, verbose=0)
    return {"history": run.history, "predict": model.predict(tf.constant(words[:5]), verbose=0)}


@program(13, undivided=True)
def texts_in_a_train_step(strategy: Any) -> Numbers:
    """A subclassed model with a train_step that vectorizes titles and looks up authors itself"""

    class Recommends(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.words = layers.TextVectorization(16, output_sequence_length=5)
            self.words.adapt(phrases(20))
            self.authors = layers.StringLookup(vocabulary=["Ada", "Bob"])
            self.table, self.people = layers.Embedding(16, 4), layers.Embedding(3, 4)
            self.score = layers.Dense(1)

        def call(self, x: Any) -> Any:
            title = self.table(self.words(x["title"]))
            author = self.people(self.authors(tf.strings.strip(x["author"])))
            return self.score(tf.reduce_mean(title, axis=1) * author)

        def train_step(self, data: Any) -> dict[str, Any]:
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
            of = self.trainable_variables
            self.optimizer.apply(tape.gradient(loss, of), of)
            return {"loss": loss}

    x = {"title": phrases(20), "author": np.array(["Ada ", "Bob", "Eve", " Ada"] * 5)}
    with strategy.scope():
        model = Recommends()
        model.compile(keras.optimizers.SGD(0.2), "mse")
    data = tf.data.Dataset.from_tensor_slices((x, reals(20, 1))).batch(8)
    run = model.fit(data, epochs=2, verbose=0)
    return {"history": run.history, "predict": model.predict(data, verbose=0)}


@program(13)
def feature_space_in_the_model(strategy: Any) -> Numbers:
    """A FeatureSpace in the model, from raw columns to the answer, with a crossed feature"""
    table = {
        "age": reals(24, seed=3),
        "town": np.array(["Rome", "Oslo", "Bonn", "Lima"] * 6),
        "code": labels(5, 24, seed=4),
    }
    kinds = keras.utils.FeatureSpace
    with strategy.scope():
        space = kinds(
            features={
                "age": kinds.float_normalized(),
                "town": kinds.string_categorical(num_oov_indices=1),
                "code": kinds.integer_hashed(num_bins=4),
            },
            crosses=[kinds.cross(("town", "code"), crossing_dim=6)],
            output_mode="concat",
        )
        space.adapt(tf.data.Dataset.from_tensor_slices(table))
        inputs, encoded = space.get_inputs(), space.get_encoded_features()
        h = layers.Dense(6, "tanh")(encoded)
        model = keras.Model(inputs, layers.Dense(1, "sigmoid")(h))
        model.compile(keras.optimizers.SGD(0.3), "binary_crossentropy", metrics=["accuracy"])
    y = labels(2, 24).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((table, y)).batch(8)
    run = model.fit(data, epochs=2, verbose=0)
    return {"history": run.history, "predict": model.predict(data, verbose=0)}
