"""Kind 11: parts created outside the scope."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from tests.programs.data import labels, phrases, reals, weights
from tests.programs.program import Numbers, program


@program(11, always=True)
def adapted_outside(strategy: Any) -> Numbers:
    """Normalization adapted before the scope, an optimizer and metrics made there too"""
    x, y = 3 * reals(26, 5) + 2, labels(3, 26)
    normalize = layers.Normalization()
    normalize.adapt(x)
    optimizer = keras.optimizers.SGD(0.2, momentum=0.9)
    metrics = [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]
    with strategy.scope():
        model = keras.Sequential([keras.Input((5,)), normalize, layers.Dense(3)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss, metrics=metrics)
    run = model.fit(x, y, batch_size=8, epochs=2, validation_data=(x[:5], y[:5]), verbose=0)
    return {
        "history": run.history,
        "iterations": int(optimizer.iterations.numpy()),
        "optimizer": weights(optimizer.variables[2:]),
        "weights": weights(model),
    }


@program(11, always=True)
def compiled_in_the_scope_alone(strategy: Any) -> Numbers:
    """A model built and called outside, compiled in the scope, trained, saved and loaded"""
    x, y = reals(22, 5), reals(22, 2, seed=3)
    body = keras.Sequential(
        [keras.Input((5,)), layers.Dense(6, "tanh"), layers.BatchNormalization()]
    )
    model = keras.Sequential([body, layers.Dense(2)])
    before = model.predict(x[:6], verbose=0)
    with strategy.scope():
        model.compile(keras.optimizers.SGD(0.1), "mse")
    body.layers[-1].trainable = False  # its statistics are those of a replica's own rows
    run = model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    return {
        "before": before,
        "history": run.history,
        "after": model.predict(x[:6], verbose=0),
        "weights": weights(model),
    }


@program(11)
def loaded_and_tuned_on(strategy: Any, folder: str) -> Numbers:
    """A saved model is loaded outside the scope and used as a frozen part of a new one"""
    path = str(Path(folder) / f"base-{keras.backend.backend()}-{_rank()}.keras")
    base = keras.Sequential([keras.Input((5,)), layers.Dense(6, "tanh"), layers.Dense(4, "tanh")])
    base.save(path)
    base = keras.models.load_model(path)
    base.trainable = False
    x, y = reals(22, 5), labels(3, 22)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    with strategy.scope():
        inputs = keras.Input((5,))
        model = keras.Model(inputs, layers.Dense(3)(base(inputs, training=False)))
        model.compile(keras.optimizers.SGD(0.3), loss, metrics=["accuracy"])
    first = model.fit(x, y, batch_size=8, epochs=1, verbose=0)
    base.trainable = True
    with strategy.scope():
        model.compile(keras.optimizers.SGD(0.05), loss, metrics=["accuracy"])
    second = model.fit(x, y, batch_size=8, epochs=1, verbose=0)
    return {"first": first.history, "second": second.history, "weights": weights(model, base)}


def _rank() -> int:
    import json
    import os

    return int(json.loads(os.environ.get("TF_CONFIG", "{}")).get("task", {}).get("index", 0))


@program(11)
def trackers_of_the_class(strategy: Any) -> Numbers:
    """Metrics made where the class is written, outside the scope"""
    loss_tracker = keras.metrics.Mean(name="loss")
    error = keras.metrics.MeanAbsoluteError(name="error")

    class Tracked(keras.Model):
        def train_step(self, data: Any) -> dict[str, Any]:
            x, y = data
            with tf.GradientTape() as tape:
                y_pred = self(x, training=True)
                loss = ops.mean(keras.losses.mean_squared_error(y, y_pred))
            of = self.trainable_weights
            self.optimizer.apply_gradients(zip(tape.gradient(loss, of), of, strict=True))
            loss_tracker.update_state(loss, sample_weight=ops.shape(x)[0])
            error.update_state(y, y_pred)
            return {"loss": loss_tracker.result(), "error": error.result()}

        @property
        def metrics(self) -> list[Any]:
            return [loss_tracker, error]

    with strategy.scope():
        inputs = keras.Input((4,))
        model = Tracked(inputs, layers.Dense(1)(layers.Dense(5, "tanh")(inputs)))
        model.compile(optimizer=keras.optimizers.SGD(0.1))
    run = model.fit(reals(22, 4), reals(22, 1, seed=3), batch_size=8, epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}


@program(11, always=True)
def texts_in_the_input(strategy: Any) -> Numbers:
    """TextVectorization adapted outside, used in dataset.map"""
    texts, y = phrases(26), labels(2, 26).astype("float32")
    vectorize = layers.TextVectorization(20, output_sequence_length=6)
    vectorize.adapt(texts)
    data = tf.data.Dataset.from_tensor_slices((texts, y)).batch(8)
    data = data.map(lambda text, label: (vectorize(text), label))
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((6,), dtype="int64"),
                layers.Embedding(20, 5),
                layers.GlobalAveragePooling1D(),
                layers.Dense(1, "sigmoid"),
            ]
        )
        model.compile(keras.optimizers.SGD(0.5), "binary_crossentropy", metrics=["accuracy"])
    run = model.fit(data, epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}


@program(11)
def augmentation_outside(strategy: Any) -> Numbers:
    """Random image layers created outside: in the input with a factor of 0, and in the model"""
    x, y = reals(20, 8, 8, 1), labels(3, 20)
    still = keras.Sequential([layers.RandomTranslation(0.0, 0.0), layers.RandomZoom(0.0)])
    inside = layers.RandomContrast(0.0, seed=3)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    data = data.map(lambda image, label: (still(image, training=True), label))
    with strategy.scope():
        inputs = keras.Input((8, 8, 1))
        h = layers.Conv2D(3, 3, activation="tanh")(inside(inputs))
        model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(h)))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.3), loss)
    run = model.fit(data, epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}


@program(11)
def feature_space_outside(strategy: Any) -> Numbers:
    """A FeatureSpace adapted outside, used in dataset.map; its encoded features trained"""
    table = {
        "age": labels(70, 24, seed=2) + 10,
        "pressure": 20 * reals(24, seed=3) + 120,
        "thal": np.array(["fixed", "normal", "reversible"] * 8),
        "sex": labels(2, 24, seed=4),
    }
    target = labels(2, 24, seed=5).astype("float32")
    space = keras.utils.FeatureSpace(
        features={
            "age": keras.utils.FeatureSpace.float_discretized(num_bins=4),
            "pressure": keras.utils.FeatureSpace.float_normalized(),
            "thal": keras.utils.FeatureSpace.string_categorical(num_oov_indices=0),
            "sex": keras.utils.FeatureSpace.integer_categorical(num_oov_indices=0),
        },
        crosses=[keras.utils.FeatureSpace.cross(("sex", "age"), crossing_dim=8)],
        output_mode="concat",
    )
    data = tf.data.Dataset.from_tensor_slices((table, target))
    space.adapt(data.map(lambda features, _: features))
    ready = data.batch(8).map(lambda features, label: (space(features), label))
    with strategy.scope():
        encoded = space.get_encoded_features()
        outputs = layers.Dense(1, "sigmoid")(layers.Dense(6, "tanh")(encoded))
        model = keras.Model(inputs=encoded, outputs=outputs)
        model.compile(keras.optimizers.SGD(0.3), "binary_crossentropy", metrics=["accuracy"])
    run = model.fit(ready, epochs=2, validation_data=ready, verbose=0)
    return {"history": run.history, "weights": weights(model)}
