"""What scripts make before or after the `with strategy.scope():` of their model."""

from __future__ import annotations

import os
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.conformance.data import BATCH, CLASSES, FEATURES, ROWS, arrays, dataset, rows
from tests.conformance.models import adam, classify, crossentropy, mlp, sgd

dense = keras.layers.Dense

loss_tracker = keras.metrics.Mean(name="loss")  # of the module, as in Keras's guide
mae_metric = keras.metrics.MeanAbsoluteError(name="mae")


def result(model: Any, history: Any = None, **more: Any) -> dict[str, Any]:
    return {
        "history": {**(history.history if history is not None else {}), **more},
        "predict": [model.predict(rows()[0], batch_size=BATCH, verbose=0)],
        "weights": model.get_weights(),
    }


def model_outside(scope: Any, folder: str) -> dict[str, Any]:
    """Of the three lines, the scope is around `compile` alone."""
    keras.utils.set_random_seed(7)
    model = mlp()
    model.predict(rows()[0][:5], verbose=0)  # a function that was traced before
    with scope():
        model.compile(**classify(lambda: sgd(0.1, momentum=0.9)))
    found = result(model, model.fit(**arrays(), epochs=2, verbose=0))
    path = os.path.join(folder, "m.keras")  # the same on all workers: on a mesh one writes it
    model.save(path)
    again = keras.models.load_model(path)
    checkpoint = tf.train.Checkpoint(model=model).save(os.path.join(folder, f"c{os.getpid()}"))
    plain = mlp()
    tf.train.Checkpoint(model=plain).restore(checkpoint)
    found["predict"] += [m.predict(rows()[0], verbose=0) for m in (again, plain)]
    return found


def compile_outside(scope: Any, folder: str) -> dict[str, Any]:
    keras.utils.set_random_seed(7)
    with scope():
        model = mlp()
    model.compile(**classify(lambda: sgd(0.1, momentum=0.9)))
    return result(model, model.fit(**arrays(), epochs=2, verbose=0))


def fit_in_the_scope(scope: Any, folder: str) -> dict[str, Any]:
    """All is created outside, and trained there once before."""
    keras.utils.set_random_seed(7)
    model = mlp()
    model.compile(**classify(lambda: adam(0.01, weight_decay=0.1)))
    model.optimizer.exclude_from_weight_decay(var_list=[model.weights[1]])
    first = model.fit(**arrays(), epochs=1, shuffle=False, verbose=0).history
    with scope():
        second = model.fit(**arrays(), epochs=2, shuffle=False, verbose=0)
    iterations = int(model.optimizer.iterations)
    return result(model, second, first=first["loss"], iterations=[iterations])


def optimizer_outside(scope: Any, folder: str) -> dict[str, Any]:
    keras.utils.set_random_seed(7)
    optimizer, loss, metric = adam(0.01), crossentropy(), keras.metrics.SparseCategoricalAccuracy()
    with scope():
        model = mlp()
        model.compile(optimizer, loss, metrics=[metric])
    return result(model, model.fit(**arrays(), epochs=2, verbose=0))


def loaded_outside(scope: Any, folder: str) -> dict[str, Any]:
    """A compiled model and its optimizer's slots, from a file."""
    keras.utils.set_random_seed(7)
    model = mlp()
    model.compile(**classify(lambda: sgd(0.1, momentum=0.9, use_ema=True)))
    model.fit(**arrays(), epochs=1, shuffle=False, verbose=0)
    path = os.path.join(folder, f"m{os.getpid()}.keras")
    model.save(path)
    loaded = keras.models.load_model(path)
    with scope():
        history = loaded.fit(**arrays(), epochs=2, shuffle=False, verbose=0)
    return result(loaded, history, iterations=[int(loaded.optimizer.iterations)])


class OfTheModule(keras.Model):
    """Keras's guide to `train_step`: metrics that the model's attributes do not name."""

    count = keras.metrics.Sum(name="count")

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        y = tf.cast(y, tf.float32)[:, None]
        with tf.GradientTape() as tape:
            p = self(x, training=True)
            loss = keras.losses.mean_squared_error(y, p)
            loss = tf.reduce_mean(loss)
        of = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, of), of)
        loss_tracker.update_state(loss, sample_weight=tf.shape(x)[0])
        mae_metric.update_state(y, p)
        self.count.update_state(tf.ones_like(y))
        return {m.name: m.result() for m in self.metrics}

    @property
    def metrics(self) -> list[Any]:
        return [loss_tracker, mae_metric, self.count]


def metrics_of_the_module(scope: Any, folder: str) -> dict[str, Any]:
    keras.utils.set_random_seed(7)
    with scope():
        x = keras.Input((FEATURES,))
        model = OfTheModule(x, dense(1)(dense(8, "tanh")(x)))
        model.compile(sgd(0.1))
    return result(model, model.fit(**arrays(), epochs=2, verbose=0))


class WithParts(keras.Model):
    def __init__(self, front: Any, head: Any) -> None:
        super().__init__()
        self.front, self.head = front, head
        self.scale = tf.Variable(2.0, trainable=False)  # no Keras variable

    def call(self, x: Any) -> Any:
        return self.head(self.front(x) * self.scale)


def parts_in_the_scope(scope: Any, folder: str) -> dict[str, Any]:
    """The parts are made in the scope, what holds them outside, and so is all that follows."""
    keras.utils.set_random_seed(7)
    with scope():
        front, head = dense(8, "tanh"), dense(CLASSES)
        front.build((None, FEATURES))
        head.build((None, 8))
    model = WithParts(front, head)
    model.compile(**classify(lambda: sgd(0.1)))
    x, y = rows()
    history = model.fit(**arrays(), epochs=2, verbose=0)
    return result(model, history, on_batch=model.train_on_batch(x[:10], y[:10]))


def parts_outside(scope: Any, folder: str) -> dict[str, Any]:
    """A normalization that has adapted, a frozen base, and a random layer that does nothing."""
    keras.utils.set_random_seed(7)
    x, _ = rows()
    normalize = keras.layers.Normalization()
    normalize.adapt(x)
    augment = keras.Sequential([keras.layers.GaussianNoise(1e-20), keras.layers.Dropout(0.0)])
    base = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            dense(8, "tanh"),
            keras.layers.BatchNormalization(synchronized=True),
        ]
    )
    base.trainable = False
    with scope():
        inputs = keras.Input((FEATURES,))
        h = base(augment(normalize(inputs)), training=False)
        model = keras.Model(inputs, dense(CLASSES)(h))
        model.compile(**classify(lambda: sgd(0.1)))
    first = model.fit(**arrays(), epochs=1, verbose=0).history["loss"]
    base.trainable = True
    with scope():
        model.compile(**classify(lambda: sgd(0.01)))
    return result(model, model.fit(dataset().batch(14), epochs=2, verbose=0), first=first)


class Holder:
    """An object of the user's, of no class of Keras's."""

    def __init__(self) -> None:
        self.optimizers = {"front": sgd(0.1, momentum=0.9), "head": [sgd(0.05)]}
        self.means = {"loss": keras.metrics.Mean(name="loss")}


def held_in_objects(scope: Any, folder: str) -> dict[str, Any]:
    """Optimizers and metrics that are no attributes of the model, and a second model."""
    keras.utils.set_random_seed(7)
    holder = Holder()
    judge = keras.Sequential([keras.Input((CLASSES,)), dense(1)])

    class Holding(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.front, self.head = dense(8, "tanh"), dense(CLASSES)
            self.tools = holder

        def train_step(self, data: Any) -> dict[str, Any]:
            x, _ = data
            with tf.GradientTape(persistent=True) as tape:
                loss = tf.reduce_mean(tf.square(judge(self.head(self.front(x))) - 1))
            of = self.front.trainable_variables
            holder.optimizers["front"].apply(tape.gradient(loss, of), of)
            of = self.head.trainable_variables + judge.trainable_variables
            holder.optimizers["head"][0].apply(tape.gradient(loss, of), of)
            self.tools.means["loss"].update_state(loss, sample_weight=tf.shape(x)[0])
            return {"loss": loss}

    with scope():
        model = Holding()
        model.compile()
    history = model.fit(**arrays(), epochs=2, verbose=0).history
    weights = [w for part in (model.front, model.head, judge) for w in part.get_weights()]
    return {"history": history, "weights": weights}


def features_outside(scope: Any, folder: str) -> dict[str, Any]:
    """Structured data: a FeatureSpace that has adapted feeds the model."""
    keras.utils.set_random_seed(7)
    rng = np.random.default_rng(1)
    data = {
        "age": rng.integers(20, 60, ROWS).astype("float32"),
        "size": rng.normal(size=ROWS).astype("float32"),
        "kind": rng.integers(0, 3, ROWS),
    }
    y = rng.integers(0, 2, ROWS).astype("float32")
    features = keras.utils.FeatureSpace(
        {"age": "float_normalized", "size": "float_rescaled", "kind": "integer_categorical"}
    )
    raw = tf.data.Dataset.from_tensor_slices((data, y)).batch(BATCH)
    features.adapt(raw.map(lambda x, y: x))
    ready = raw.map(lambda x, y: (features(x), y))
    with scope():
        encoded = features.get_encoded_features()
        h = dense(8, "tanh")(encoded)
        model = keras.Model(encoded, dense(1, "sigmoid")(h))
        model.compile(sgd(0.1), "binary_crossentropy", metrics=["accuracy"])
    history = model.fit(ready, epochs=2, verbose=0, validation_data=ready).history
    return {
        "history": history,
        "predict": [model.predict(ready, verbose=0)],
        "weights": model.get_weights(),
    }


MADE_OUTSIDE = (
    model_outside,
    compile_outside,
    fit_in_the_scope,
    optimizer_outside,
    loaded_outside,
    metrics_of_the_module,
    parts_in_the_scope,
    parts_outside,
    held_in_objects,
    features_outside,
)
