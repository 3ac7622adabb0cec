"""Kind 16: numbers in callbacks, files beside the training, processes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tests.programs.data import labels, reals, weights
from tests.programs.program import Numbers, program


@program(16, always=True)
def numbers_in_a_callback(strategy: Any) -> Numbers:
    """A callback that warms the learning rate up and reads counters and weights as numbers"""

    class WarmUp(keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[float] = []

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            step = int(self.model.optimizer.iterations)
            self.model.optimizer.learning_rate.assign(0.3 * min(1.0, (step + 1) / 4))

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            optimizer = self.model.optimizer
            kernel = np.array(self.model.trainable_variables[0].value)
            self.seen += [float(optimizer.learning_rate), int(optimizer.iterations)]
            self.seen += [float(np.linalg.norm(kernel)), float(f"{float(logs['loss']):.4f}")]

    x, y = reals(22, 4), reals(22, 1, seed=3)
    with strategy.scope():
        model = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.1), "mse")
    warm = WarmUp()
    run = model.fit(x, y, batch_size=8, epochs=2, callbacks=[warm], verbose=0)
    return {"history": run.history, "seen": warm.seen, "weights": weights(model)}


@program(16, needs="keras_tuner")
def searched_by_keras_tuner(strategy: Any, folder: str) -> Numbers:
    """KerasTuner: a random search whose trials all workers take together, in a shared directory"""
    import keras_tuner

    x, y = reals(32, 4), reals(32, 1, seed=3)

    def built(choices: Any) -> keras.Model:
        units, rate = choices.Choice("units", [2, 4, 8]), choices.Choice("rate", [0.05, 0.1])
        model = keras.Sequential([keras.Input((4,)), layers.Dense(units, "tanh"), layers.Dense(1)])
        model.compile(keras.optimizers.SGD(rate), "mse")
        return model

    tuner = keras_tuner.RandomSearch(
        built,
        objective="val_loss",
        max_trials=3,
        seed=3,
        directory=folder,
        project_name="search",
        overwrite=True,
        distribution_strategy=strategy,
    )
    data = {"validation_data": (x, y), "shuffle": False}
    tuner.search(x, y, epochs=2, batch_size=8, verbose=0, **data)
    best = tuner.get_best_models()[0]
    return {
        "scores": [trial.score for trial in tuner.oracle.get_best_trials(3)],
        "choices": tuner.get_best_hyperparameters()[0].values,
        "predicted": best.predict(x[:8], verbose=0),
    }


@program(16)
def averaged_by_a_callback(strategy: Any) -> Numbers:
    """A callback that keeps an average of the weights and evaluates with it, and a schedule"""

    class Averages(keras.callbacks.Callback):
        def __init__(self, data: Any) -> None:
            super().__init__()
            self.data, self.kept, self.found = data, None, []

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            now = [np.array(v) for v in self.model.trainable_variables]
            kept = now if self.kept is None else self.kept
            self.kept = [0.5 * (a + b) for a, b in zip(kept, now, strict=True)]
            own = self.model.get_weights()
            for v, value in zip(self.model.trainable_variables, self.kept, strict=True):
                v.assign(value)
            self.found.append(self.model.evaluate(*self.data, batch_size=8, verbose=0))
            self.model.set_weights(own)

    x, y = reals(22, 4), labels(3, 22)
    with strategy.scope():
        model = keras.Sequential([keras.Input((4,)), layers.Dense(5, "tanh"), layers.Dense(3)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.5), loss)
    averages = Averages((x, y))
    schedule = keras.callbacks.LearningRateScheduler(lambda e: 0.5 * (1 + math.cos(e)) / 2)
    run = model.fit(x, y, batch_size=8, epochs=3, callbacks=[averages, schedule], verbose=0)
    return {"history": run.history, "found": averages.found, "weights": weights(model)}


@program(16)
def cached_in_a_file(strategy: Any, folder: str) -> Numbers:
    """dataset.cache(path) in a directory that all workers share"""
    x, y = reals(22, 4), reals(22, 1, seed=3)
    data = tf.data.Dataset.from_tensor_slices((x, y)).map(lambda a, b: (2 * a, b))
    data = data.cache(str(Path(folder) / "rows")).batch(8)
    with strategy.scope():
        model = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.05), "mse")
    run = model.fit(data, epochs=3, verbose=0)
    return {"history": run.history, "weights": weights(model)}


@program(16)
def best_model_kept(strategy: Any, folder: str) -> Numbers:
    """ModelCheckpoint of the best epoch, EarlyStopping, TensorBoard, the file evaluated"""
    x, y = reals(26, 4), labels(3, 26)
    with strategy.scope():
        model = keras.Sequential([keras.Input((4,)), layers.Dense(6, "tanh"), layers.Dense(3)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(1.5), loss, metrics=["accuracy"])
    path = Path(folder) / "best.keras"
    callbacks = [
        keras.callbacks.ModelCheckpoint(str(path), save_best_only=True, monitor="val_loss"),
        keras.callbacks.EarlyStopping(patience=2, restore_best_weights=True),
        keras.callbacks.TensorBoard(str(Path(folder) / "logs")),
        keras.callbacks.ReduceLROnPlateau(patience=1, factor=0.5),
    ]
    run = model.fit(
        x, y, batch_size=8, epochs=4, validation_split=0.3, callbacks=callbacks, verbose=0
    )
    with strategy.scope():
        best = keras.models.load_model(path)
    history = {k: v for k, v in run.history.items() if k != "learning_rate"}
    return {
        "history": history,
        "best": best.evaluate(x, y, batch_size=8, verbose=0),
        "weights": weights(model),
    }


@program(16)
def parts_saved_on_their_own(strategy: Any, folder: str) -> Numbers:
    """An encoder that a callback saves each epoch; a model that has never run, exported"""

    class SavesTheEncoder(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.model.encoder.save_weights(str(Path(folder) / f"{epoch}.weights.h5"))

    x = reals(22, 6)
    with strategy.scope():
        inputs = keras.Input((6,))
        encoder = keras.Sequential([keras.Input((6,)), layers.Dense(256, "tanh"), layers.Dense(2)])
        model = keras.Model(inputs, layers.Dense(6)(encoder(inputs)))
        model.encoder = encoder
        model.compile(keras.optimizers.SGD(0.05), "mse")
        sums = keras.Model(inputs, keras.ops.sum(encoder(inputs), axis=1, keepdims=True))
    run = model.fit(x, x, batch_size=8, epochs=2, callbacks=[SavesTheEncoder()], verbose=0)
    model.encoder.save(str(Path(folder) / "encoder.keras"))
    sums.export(str(Path(folder) / "sums"), verbose=False)
    model.encoder.load_weights(str(Path(folder) / "0.weights.h5"))
    first = model.encoder.predict(x[:4], verbose=0)  # after which no worker writes
    exported = tf.saved_model.load(str(Path(folder) / "sums"))
    return {
        "history": run.history,
        "first": first,
        "last": np.asarray(keras.models.load_model(str(Path(folder) / "encoder.keras"))(x[:4])),
        "exported": exported.serve(x[:4]).numpy(),
    }
