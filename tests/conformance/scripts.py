"""Cases that are more than one call of `fit`: each a function of a scope and a folder."""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.conformance.custom_steps import OWN_STEPS
from tests.conformance.data import (
    BATCH,
    CLASSES,
    ROWS,
    arrays,
    dataset,
    dataset_without_option_and_weights,
    generator_without_option,
    images,
    rows,
)
from tests.conformance.models import (
    DecoratedStep,
    Subclassed,
    adam,
    classify,
    cnn,
    crossentropy,
    loss_scaled,
    mlp,
    sgd,
    with_option,
)
from tests.conformance.outside_scope import MADE_OUTSIDE

SCRIPTS: dict[str, Callable[[Any, str], dict[str, Any]]] = {}


def script(function: Callable[[Any, str], dict[str, Any]]) -> Callable[..., Any]:
    """A case that is more than one call of fit."""
    SCRIPTS[function.__name__] = function
    return function


@script
def on_batch(scope: Any, folder: str) -> dict[str, Any]:
    keras.utils.set_random_seed(7)
    x, y = rows()
    with scope():
        model = mlp()
        model.compile(**classify())
    logs = [model.train_on_batch(x[:10], y[:10]), model.train_on_batch(x[10:21], y[10:21])]
    logs.append(model.test_on_batch(x[:9], y[:9]))
    return {
        "history": np.array(logs),
        "predict": [model.predict_on_batch(x[:11])],
        "weights": model.get_weights(),
    }


@script
def on_batch_without_option(scope: Any, folder: str) -> dict[str, Any]:
    """The other doors through which a batch with None comes, also one of a single row."""
    keras.utils.set_random_seed(7)
    x, y = rows()
    with scope():
        model = with_option()
        model.compile(**classify(sgd))
    sizes = (16, 1, 10)
    logs = [model.train_on_batch({"a": x[:n], "b": None}, y[:n], None) for n in sizes]
    logs += [model.test_on_batch({"a": x[:n], "b": None}, y[:n], None) for n in sizes]
    logs.append(model.evaluate(generator_without_option(), verbose=0))
    logs.append(model.evaluate(dataset_without_option_and_weights(), verbose=0))
    return {
        "history": np.array(logs),
        "predict": [
            model.predict_on_batch({"a": x[:11], "b": None}),
            model.predict(generator_without_option(), verbose=0),
            model.predict(dataset_without_option_and_weights(), verbose=0),
        ],
        "weights": model.get_weights(),
    }


@script
def save_and_load(scope: Any, folder: str) -> dict[str, Any]:
    path = os.path.join(folder, "model.keras")
    keras.utils.set_random_seed(7)
    with scope():
        model = Subclassed()
        model.compile(**classify(lambda: adam(0.05, clipnorm=0.05)))
    model.fit(**arrays(), verbose=0)
    model.save(path)
    with zipfile.ZipFile(path) as file:
        written = json.loads(file.read("config.json"))["compile_config"]["optimizer"]
    with scope():
        again = keras.models.load_model(path)
    again.fit(**arrays(), verbose=0)
    alone = keras.models.load_model(path)  # one device, in the same process
    return {
        "weights": again.get_weights(),
        "predict": [alone.predict(rows()[0], verbose=0)],
        "own_optimizer": [written["module"], written["class_name"], again.optimizer.clipnorm],
        "iterations": np.array(int(again.optimizer.iterations.numpy())),
    }


@script
def checkpoints(scope: Any, folder: str) -> dict[str, Any]:
    """A run that is split after two epochs and taken up again equals one that is not."""

    class Cut(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 2:
                raise InterruptedError

    def train(*callbacks: Any) -> keras.Model:
        keras.utils.set_random_seed(7)
        with scope():
            model = mlp()
            model.compile(**classify(lambda: adam(0.01)))  # it has slots to restore
        kept = keras.callbacks.BackupAndRestore(os.path.join(folder, "backup"))
        best = keras.callbacks.ModelCheckpoint(
            os.path.join(folder, "best.keras"), monitor="loss", save_best_only=True
        )
        model.fit(
            **arrays(), epochs=4, shuffle=False, verbose=0, callbacks=[kept, best, *callbacks]
        )
        return model

    with contextlib.suppress(InterruptedError):
        train(Cut())
    resumed = train()
    best = keras.models.load_model(os.path.join(folder, "best.keras"))
    return {
        "weights": resumed.get_weights(),
        "predict": [best.predict(rows()[0], verbose=0)],
        "iterations": np.array(int(resumed.optimizer.iterations.numpy())),
        "left": np.array(os.path.exists(os.path.join(folder, "backup"))),
    }


@script
def batch_norm_in_the_file(scope: Any, folder: str) -> dict[str, Any]:
    """What evaluate says under the strategy is what the saved file says on one device."""
    path = os.path.join(folder, "model.keras")
    keras.utils.set_random_seed(7)
    with scope():
        model = cnn()
        model.compile(**classify())
    model.fit(**images(), epochs=3, verbose=0)
    here = model.evaluate(**images(), verbose=0)
    model.save(path)
    file = keras.models.load_model(path).evaluate(**images(), verbose=0)
    return {"own_here": np.array(here), "own_file": np.array(file), "weights": model.get_weights()}


@script
def sees_every_row_once(scope: Any, folder: str) -> dict[str, Any]:
    """An unseeded shuffle, counted with a metric: each epoch has each row once."""
    with scope():
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.compile("sgd", loss=lambda y, p: y[:, 0] + 0 * p[:, 0], metrics=[Squares()])
    ids = np.arange(ROWS, dtype="float32")[:, None]
    data = tf.data.Dataset.from_tensor_slices((ids, ids)).shuffle(ROWS).batch(BATCH)
    history = model.fit(data, epochs=3, verbose=0).history
    return {"history": {k: np.array(v) for k, v in history.items()}}


class Squares(keras.metrics.Metric):
    def __init__(self) -> None:
        super().__init__(name="squares")
        self.total = self.add_weight(shape=(), initializer="zeros")

    def update_state(self, y: Any, p: Any, sample_weight: Any = None) -> None:
        self.total.assign_add(keras.ops.sum(keras.ops.square(y)))

    def result(self) -> Any:
        return self.total + 0.0


@script
def distributed_by_hand(scope: Any, folder: str) -> dict[str, Any]:
    """Datasets that the script has distributed itself, with `tf.distribute`'s own functions."""
    keras.utils.set_random_seed(7)
    with scope():
        model = mlp()
        model.compile(**classify(lambda: sgd(0.1)))

    def own_rows(context: Any) -> tf.data.Dataset:
        batch = context.get_per_replica_batch_size(12)
        rows_here = dataset().shard(context.num_input_pipelines, context.input_pipeline_id)
        return rows_here.batch(batch, drop_remainder=True)

    strategy = model.distribute_strategy
    model.fit(strategy.distribute_datasets_from_function(own_rows), steps_per_epoch=3, verbose=0)
    whole = strategy.experimental_distribute_dataset(dataset().batch(12))
    model.fit(whole, steps_per_epoch=3, verbose=0)
    return {"weights": model.get_weights()}


@script
def loop_by_hand(scope: Any, folder: str) -> dict[str, Any]:
    """The custom training loop of TensorFlow's guide: `tf.distribute` as it has always been."""
    keras.utils.set_random_seed(7)
    with scope():
        strategy = tf.distribute.get_strategy()
        model = mlp()
        optimizer = sgd(0.1)
        per_row = crossentropy(reduction="none")
        optimizer.build(model.trainable_variables)

    def step(batch: Any) -> Any:
        x, y = batch
        with tf.GradientTape() as tape:
            loss = tf.nn.compute_average_loss(per_row(y, model(x)), global_batch_size=12)
        of = model.trainable_variables
        optimizer.apply(tape.gradient(loss, of), of)
        return loss

    @tf.function
    def next_step(iterator: Any) -> Any:
        losses = strategy.run(step, args=(next(iterator),))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)

    data = dataset().take(36).batch(12, drop_remainder=True)
    iterator = iter(strategy.experimental_distribute_dataset(data))
    losses = [float(next_step(iterator)) for _ in range(3)]
    return {"history": {"loss": np.array(losses)}, "weights": model.get_weights()}


@script
def loops_by_hand(scope: Any, folder: str) -> dict[str, Any]:
    """Loops as guides write them: what is made in their first step, and what comes between."""
    return _all_looped(scope, _FEW_LOOPS)


@script
def more_loops_by_hand(scope: Any, folder: str) -> dict[str, Any]:
    """Every optimizer of these loops in every way."""
    every = [(name, how) for name in _LOOPED for how in ("eager", "step", "epoch", "without run")]
    return _all_looped(scope, [loop for loop in every if loop not in _FEW_LOOPS])


_LOOPED: dict[str, Callable[[], Any]] = {
    "adam": lambda: adam(0.05, clipnorm=0.1),
    "accumulates": lambda: sgd(0.3, gradient_accumulation_steps=2),
    "scaled": lambda: loss_scaled(8.0),
}
# Each optimizer and each way.
_FEW_LOOPS = [
    ("adam", "eager"),
    ("adam", "epoch"),
    ("accumulates", "step"),
    ("scaled", "without run"),
]


def _all_looped(scope: Any, loops: list[tuple[str, str]]) -> dict[str, Any]:
    data = dataset().take(36).batch(12, drop_remainder=True)
    found = {
        f"{name}, {how}": np.array(_looped(scope, data, _LOOPED[name](), how))
        for name, how in loops
    }
    return {"history": found}


def _looped(scope: Any, data: tf.data.Dataset, optimizer: Any, how: str) -> list[float]:
    keras.utils.set_random_seed(7)
    with scope():
        strategy = tf.distribute.get_strategy()
        model = mlp()
        optimizer = type(optimizer).from_config(optimizer.get_config())
        mean, f1 = keras.metrics.Mean(), keras.metrics.F1Score(average="macro")
        per_row = crossentropy(reduction="none")

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            predicted = model(x, training=True)
            rows = per_row(y, predicted)
            loss = tf.nn.compute_average_loss(rows, global_batch_size=12)
            scaled = optimizer.scale_loss(loss)
        of = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(scaled, of), of, strict=True))
        mean.update_state(rows)
        f1.update_state(tf.one_hot(y, CLASSES), predicted)
        return loss

    def run(batch: Any) -> Any:
        losses = strategy.run(step, args=batch)
        return strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)

    @tf.function
    def epoch(batches: Any) -> Any:
        total = 0.0
        for batch in batches:
            total += run(batch)
        return total

    said = []
    if how == "without run":
        one = tf.function(step)
        said = [float(one(*batch)) for batch in data]
    else:
        batches = strategy.experimental_distribute_dataset(data)
        one = run if how == "eager" else tf.function(run)
        said = [float(epoch(batches))] if how == "epoch" else [float(one(b)) for b in batches]
    optimizer.learning_rate = 0.01
    if how != "without run":
        said += [float(one(b)) for b in batches]
    weights = [float(np.abs(w).sum()) for w in model.get_weights()]
    return [*said, float(mean.result()), float(f1.result()), *weights]


@script
def strings_and_ragged(scope: Any, folder: str) -> dict[str, Any]:
    keras.utils.set_random_seed(7)
    words = np.array([["ant"], ["bee"], ["cat"], ["dog"]] * 5)
    with scope():
        hashed = keras.Sequential(
            [
                keras.Input((1,), dtype="string"),
                keras.layers.StringLookup(vocabulary=["ant", "bee", "cat"], output_mode="one_hot"),
                keras.layers.Dense(1),
            ]
        )
        hashed.compile("sgd", "mse")
    y = np.arange(20, dtype="float32")[:, None] / 20
    first = hashed.fit(tf.data.Dataset.from_tensor_slices((words, y)).batch(7), verbose=0)
    return {"history": {"loss": np.array(first.history["loss"])}, "weights": hashed.get_weights()}


@script
def dropout(scope: Any, folder: str) -> dict[str, Any]:
    """Masks: the same in two runs of one seed, different from replica to replica."""

    def masks() -> np.ndarray:
        keras.utils.set_random_seed(7)
        with scope():
            model = Drops()
            model.compile("sgd", "mse")
        ones = np.ones((8, 64), "float32")
        kept = [model.train_on_batch(ones, ones, return_dict=True)["kept"] for _ in range(2)]
        return np.array(kept)

    first, second = masks(), masks()
    return {"own_masks": first, "repeated": np.array(np.array_equal(first, second))}


class Drops(keras.Model):
    """Logs, for each pair of rows, how often one unit was kept in one and not in the other."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = keras.layers.Dropout(0.5, seed=3)
        self.dense = keras.layers.Dense(64)

    def call(self, x: Any, training: bool = False) -> Any:
        return self.dense(self.drop(x, training=training))

    def train_step(self, data: Any) -> dict[str, Any]:
        x = data[0]
        mask = tf.cast(self.drop(x, training=True) > 0, tf.float32)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(self.dense(x))
        of = self.dense.trainable_variables
        self.optimizer.apply(tape.gradient(loss, of), of)
        return {"kept": tf.reduce_mean(mask, axis=0)}


@script
def refusals(scope: Any, folder: str) -> dict[str, Any]:
    """What cannot be: each gets a line that says so."""
    with scope():
        inside = mlp()
        jitted = mlp()
        decorated = DecoratedStep()
        decorated.compile(**classify())
        jitted.compile(**classify(jit_compile=True))
    unsharded = dataset().batch(BATCH)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    with scope():
        inside.compile(**classify())
    unbatched = {"x": tf.data.Dataset.range(8).map(lambda i: (tf.cast(i, tf.float32), i))}
    said = {}
    for name, call in {
        "jit_compile": lambda: jitted.fit(**arrays(), verbose=0),
        "decorated_train_step": lambda: decorated.fit(**arrays(), verbose=0),
        "autoshard_off": lambda: inside.fit(unsharded.with_options(options), verbose=0),
        "unbatched": lambda: inside.fit(**unbatched, verbose=0),
    }.items():
        try:
            call()
            said[name] = "nothing"
        except Exception as error:
            said[name] = f"{type(error).__name__}: {error}"
    return {"said": json.dumps(said)}


for function in (*MADE_OUTSIDE, *OWN_STEPS):
    script(function)
