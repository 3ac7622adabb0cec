"""The table: what "a standard Keras model" means. A new feature is a new row here.

Each case trains a small model on 42 rows in batches of 16, 16 and 10, so that every one of them
meets a ragged last batch, and gives back all that can be compared with one device.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

ROWS, BATCH, FEATURES, CLASSES = 42, 16, 6, 3


@dataclass(frozen=True)
class Case:
    """One row of the table.

    `equal` says what is compared with one device; what is left out is compared between workers
    alone.
    """

    name: str
    model: Callable[[], keras.Model]
    compile: Callable[[], dict[str, Any]]
    data: Callable[[], dict[str, Any]]
    fit: dict[str, Any] = field(default_factory=dict)
    callbacks: Callable[[str], list[Any]] | None = None
    policy: str = "float32"
    equal: tuple[str, ...] = ("history", "evaluate", "predict", "weights", "batches")
    rtol: float = 1e-4


CASES: dict[str, Case] = {}
SCRIPTS: dict[str, Callable[[Any, str], dict[str, Any]]] = {}


def case(name: str, **row: Any) -> None:
    defaults = {"model": mlp, "compile": classify, "data": arrays}
    CASES[name] = Case(name, **{**defaults, **row})


def script(function: Callable[[Any, str], dict[str, Any]]) -> Callable[..., Any]:
    """A case that is more than one call of fit."""
    SCRIPTS[function.__name__] = function
    return function


# Data


@functools.cache
def rows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, FEATURES)).astype("float32")
    return x, rng.integers(0, CLASSES, ROWS)


def weights() -> np.ndarray:
    return np.linspace(0.1, 2.0, ROWS).astype("float32")


def arrays() -> dict[str, Any]:
    x, y = rows()
    return {"x": x, "y": y, "batch_size": BATCH}


def dataset() -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(rows())


def generator() -> Any:
    x, y = rows()
    while True:
        for start in range(0, ROWS, BATCH):
            yield x[start : start + BATCH], y[start : start + BATCH]


def finite_generator() -> Any:
    x, y = rows()
    for start in range(0, ROWS, 6):
        yield x[start : start + 6], y[start : start + 6]


class Pages(keras.utils.PyDataset):
    def __len__(self) -> int:
        return -(-ROWS // BATCH)

    def __getitem__(self, index: int) -> Any:
        x, y = rows()
        here = slice(index * BATCH, (index + 1) * BATCH)
        return x[here], y[here]


def one_huge_row() -> dict[str, Any]:
    x, y = rows()
    x = x.copy()
    x[3] = 1e6  # infinite in float16, in one batch of each epoch
    return {"x": x, "y": y, "batch_size": BATCH}


def images() -> dict[str, Any]:
    rng = np.random.default_rng(1)
    x = rng.integers(0, 256, (ROWS, 6, 6, 1)).astype("uint8")
    return {"x": x, "y": rows()[1], "batch_size": BATCH}


def tokens() -> dict[str, Any]:
    rng = np.random.default_rng(2)
    x = rng.integers(1, 9, (ROWS, 5))
    x[np.arange(5)[None] >= rng.integers(2, 6, ROWS)[:, None]] = 0  # padding
    return {"x": x, "y": rows()[1], "batch_size": BATCH}


def sequences() -> dict[str, Any]:
    x = tokens()["x"]
    return {"x": x, "y": (x + 1) % 9, "batch_size": BATCH}


def binary() -> dict[str, Any]:
    return {**arrays(), "y": (rows()[1] > 0).astype("float32")[:, None]}


def few() -> dict[str, Any]:
    x, y = rows()
    return {"x": x[:3], "y": y[:3], "batch_size": BATCH}


def lonely() -> dict[str, Any]:
    x, y = rows()
    return {"x": x[:33], "y": y[:33], "batch_size": BATCH}


def named() -> dict[str, Any]:
    x, y = rows()
    return {"x": {"a": x[:, :2], "b": x[:, 2:]}, "y": {"c": y, "d": x[:, 0]}, "batch_size": BATCH}


# Models


def mlp(**last: Any) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(8, activation="tanh"),
            keras.layers.Dense(CLASSES, **last),
        ]
    )


def yes_no() -> keras.Model:
    return keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(1, activation="sigmoid")])


def deferred() -> keras.Model:
    return keras.Sequential([keras.layers.Dense(8, "tanh"), keras.layers.Dense(CLASSES)])


def regularized() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(8, kernel_regularizer="l2", activity_regularizer="l2"),
            keras.layers.Dense(CLASSES, bias_regularizer="l1"),
        ]
    )


class AddsLoss(keras.layers.Layer):
    def call(self, x: Any) -> Any:
        self.add_loss(0.1 * keras.ops.mean(keras.ops.square(x)))
        return x


def with_add_loss() -> keras.Model:
    return keras.Sequential(
        [keras.Input((FEATURES,)), keras.layers.Dense(8), AddsLoss(), keras.layers.Dense(CLASSES)]
    )


def cnn(**norm: Any) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.BatchNormalization(**norm),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(CLASSES),
        ]
    )


def embedded(*layers: Any, mask: bool = True) -> keras.Model:
    return keras.Sequential(
        [keras.Input((5,)), keras.layers.Embedding(9, 4, mask_zero=mask), *layers]
    )


def tagger() -> keras.Model:
    return embedded(keras.layers.GRU(6, return_sequences=True), keras.layers.Dense(9))


def attention() -> keras.Model:
    x = keras.Input((5,))
    h = keras.layers.Embedding(9, 8)(x)
    h = h + keras.layers.MultiHeadAttention(2, 4)(h, h, use_causal_mask=True)
    h = keras.layers.GlobalAveragePooling1D()(keras.layers.LayerNormalization()(h))
    return keras.Model(x, keras.layers.Dense(CLASSES)(h))


def two_heads() -> keras.Model:
    a, b = keras.Input((2,), name="a"), keras.Input((4,), name="b")
    h = keras.layers.Dense(8, "tanh")(keras.layers.Concatenate()([a, b]))
    c, d = keras.layers.Dense(CLASSES, name="c")(h), keras.layers.Dense(1, name="d")(h)
    return keras.Model({"a": a, "b": b}, {"c": c, "d": d})


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hidden = keras.layers.Dense(8, "tanh")
        self.out = keras.layers.Dense(CLASSES)

    def call(self, x: Any) -> Any:
        return self.out(self.hidden(x))


class OwnStep(Subclassed):
    """The custom train_step of Keras's guide."""

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=y, y_pred=self(x, training=True))
        grads = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(grads, self.trainable_variables)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss, sample_weight=tf.shape(x)[0])
            else:
                metric.update_state(y, self(x))
        return {m.name: m.result() for m in self.metrics}


class OwnLoss(Subclassed):
    """A step that knows nothing of replicas and writes its loss as a plain mean."""

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape() as tape:
            per_row = keras.losses.sparse_categorical_crossentropy(y, self(x), from_logits=True)
            loss = keras.ops.mean(per_row)
        self.optimizer.apply(
            tape.gradient(loss, self.trainable_variables), self.trainable_variables
        )
        return {"loss": loss}


class DecoratedStep(Subclassed):
    @tf.function
    def train_step(self, data: Any) -> dict[str, Any]:
        return super().train_step(data)


class Gan(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.make = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(FEATURES)])
        self.judge = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(1)])
        self.built = True

    def compile(self, **kwargs: Any) -> None:
        super().compile(optimizer=keras.optimizers.Adam(0.01, clipnorm=0.1), loss="mse", **kwargs)
        self.judge_optimizer = keras.optimizers.Adam(0.02, global_clipnorm=0.1)

    def call(self, x: Any) -> Any:
        return self.judge(self.make(x))

    def train_step(self, data: Any) -> dict[str, Any]:
        x, _ = data
        with tf.GradientTape() as tape:
            spread = tf.reduce_mean(tf.square(self.judge(x) - 1)) + tf.reduce_mean(
                tf.square(self.judge(self.make(x)))
            )
        of = self.judge.trainable_variables
        self.judge_optimizer.apply(tape.gradient(spread, of), of)
        with tf.GradientTape() as tape:
            fooled = tf.reduce_mean(tf.square(self.judge(self.make(x)) - 1))
        of = self.make.trainable_variables
        self.optimizer.apply(tape.gradient(fooled, of), of)
        return {"spread": spread, "fooled": fooled}


# Compile


def crossentropy(**kwargs: Any) -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **kwargs)


def classify(optimizer: Any = None, **more: Any) -> dict[str, Any]:
    made = optimizer() if optimizer else keras.optimizers.Adam(0.01)
    return {"optimizer": made, "loss": crossentropy(), "metrics": ["accuracy"], **more}


def compiled(**more: Any) -> Callable[[], dict[str, Any]]:
    return lambda: classify(
        **{k: v() if callable(v) and k == "loss" else v for k, v in more.items()}
    )


def optimized(kind: Any, *args: Any, **kwargs: Any) -> Callable[[], dict[str, Any]]:
    return lambda: classify(lambda: kind(*args, **kwargs))


def scalar_loss(y_true: Any, y_pred: Any) -> Any:
    return keras.ops.mean(
        keras.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)
    )


def loss_scaled(initial: float = 2.0**15) -> Any:
    return keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.1, global_clipnorm=0.3),
        initial_scale=initial,
        dynamic_growth_steps=2,
    )


adam, sgd = keras.optimizers.Adam, keras.optimizers.SGD

# The table: data

case("arrays")
case("arrays_unshuffled", fit={"shuffle": False})
case("tf_data", data=lambda: {"x": dataset().batch(BATCH)})
case("tf_data_shuffled", data=lambda: {"x": dataset().shuffle(ROWS, seed=3).batch(BATCH)})
# Not Adam: on one device Keras counts one step too many where such data end, which moves its
# bias correction (the counter does not wait for the data: keras 3.15).
case(
    "tf_data_unknown_size",
    data=lambda: {"x": dataset().filter(lambda x, y: y >= 0).batch(BATCH)},
    compile=optimized(sgd, 0.1),
)
case(
    "tf_data_repeated",
    data=lambda: {"x": dataset().repeat().batch(BATCH, drop_remainder=True)},
    fit={"steps_per_epoch": 3},
)
case("generator", data=lambda: {"x": generator()}, fit={"steps_per_epoch": 3})
case("finite_generator", data=lambda: {"x": finite_generator()}, fit={"epochs": 1})
case("pydataset", data=lambda: {"x": Pages()})
case("last_batch_of_one", data=lonely)
case("fewer_rows_than_replicas", data=few)
case("validation_data", data=lambda: {**arrays(), "validation_data": rows()})
case("validation_split", data=lambda: {**arrays(), "validation_split": 0.3})
case("sample_weight", data=lambda: {**arrays(), "sample_weight": weights()})
case(
    "weighted_metrics",
    data=lambda: {**arrays(), "sample_weight": weights()},
    compile=compiled(weighted_metrics=["accuracy"]),
)
case("class_weight", data=lambda: {**arrays(), "class_weight": {0: 0.2, 1: 1.0, 2: 3.0}})
case(
    "class_weight_tf_data",
    data=lambda: {"x": dataset().batch(BATCH), "class_weight": {0: 0.2, 1: 1.0, 2: 3.0}},
)
case("uint8_images", model=lambda: cnn(synchronized=True), data=images)
case(
    "dict_inputs_two_outputs",
    model=two_heads,
    data=named,
    compile=lambda: {
        "optimizer": adam(0.01),
        "loss": {"c": crossentropy(), "d": "mse"},
        "loss_weights": {"c": 0.3, "d": 0.7},
        "metrics": {"c": ["accuracy"], "d": ["mae"]},
    },
)

# Losses and metrics

case("loss_sum", compile=compiled(loss=lambda: crossentropy(reduction="sum")))
case(
    "loss_mean_with_sample_weight",
    data=lambda: {**arrays(), "sample_weight": weights()},
    compile=compiled(loss=lambda: crossentropy(reduction="mean_with_sample_weight")),
)
case("loss_scalar", compile=lambda: {**classify(), "loss": scalar_loss})
case("loss_masked", model=tagger, data=sequences)
case("regularizers", model=regularized)
case("add_loss", model=with_add_loss)
case("metric_auc", model=yes_no, data=binary, compile=lambda: {
    "optimizer": adam(0.01), "loss": "binary_crossentropy",
    "metrics": ["accuracy", keras.metrics.AUC(num_thresholds=20), keras.metrics.Precision()],
})  # fmt: skip
case("metric_top_k", compile=compiled(metrics=[
    "sparse_top_k_categorical_accuracy"]))  # fmt: skip
case("metric_mean_iou", compile=lambda: classify(metrics=[
    keras.metrics.MeanIoU(CLASSES, sparse_y_pred=False)]))  # fmt: skip

# Optimizers

case("clipnorm", compile=optimized(adam, 0.05, clipnorm=0.05))
case("clipvalue", compile=optimized(sgd, 0.5, clipvalue=0.02))
case("global_clipnorm", compile=optimized(sgd, 0.5, global_clipnorm=0.1))
case("gradient_accumulation", compile=optimized(adam, 0.02, gradient_accumulation_steps=2))
case("ema", compile=optimized(adam, 0.02, use_ema=True, ema_momentum=0.8))
case(
    "ema_overwrite",
    compile=optimized(sgd, 0.2, use_ema=True, ema_momentum=0.8, ema_overwrite_frequency=2),
)
case("weight_decay", compile=optimized(keras.optimizers.AdamW, 0.02, weight_decay=0.1))
case(
    "schedule",
    compile=lambda: classify(lambda: sgd(keras.optimizers.schedules.CosineDecay(0.5, 6))),
)
case("sgd_momentum", compile=optimized(sgd, 0.1, momentum=0.9, nesterov=True))
case("lion", compile=optimized(keras.optimizers.Lion, 0.005))
case("loss_scale", compile=lambda: classify(loss_scaled))

# Precision and compilation

# Two orders of adding bfloat16 numbers differ in the third digit.
case("mixed_bfloat16", policy="mixed_bfloat16", rtol=3e-2)
case("mixed_float16", policy="mixed_float16", rtol=5e-3)
case(
    "mixed_float16_overflow",
    policy="mixed_float16",
    compile=lambda: classify(lambda: loss_scaled(2.0**30)),
    rtol=5e-3,
)
case(
    "overflow_on_one_replica",
    data=one_huge_row,
    policy="mixed_float16",
    compile=lambda: classify(loss_scaled),
    rtol=5e-3,
)
case("run_eagerly", compile=compiled(run_eagerly=True))
case("steps_per_execution", compile=compiled(steps_per_execution=2))
case("jit_auto", compile=compiled(jit_compile="auto"))

# Models

case("deferred_build", model=deferred)
case("subclassed", model=Subclassed)
case("custom_train_step", model=OwnStep, equal=("history", "evaluate", "predict", "weights"))
case(
    "custom_loss_in_train_step",
    model=OwnLoss,
    compile=compiled(metrics=None),
    equal=("history", "weights", "batches"),
)
case("gan", model=Gan, compile=dict, equal=("history", "weights"))
case("batch_norm_synchronized", model=lambda: cnn(synchronized=True), data=images)
case("batch_norm", model=cnn, data=images, equal=())
case("lstm", model=lambda: embedded(keras.layers.LSTM(6), keras.layers.Dense(3)), data=tokens)
# Not Adam: the key's bias has no gradient but rounding, which Adam makes as large as any other.
case("attention", model=attention, data=tokens, compile=optimized(sgd, 0.1))
case("embedding_sparse_gradients", model=lambda: embedded(
    keras.layers.Flatten(), keras.layers.Dense(3), mask=False), data=tokens)  # fmt: skip

# Callbacks

case("early_stopping", fit={"epochs": 5}, callbacks=lambda _: [
    keras.callbacks.EarlyStopping("accuracy", patience=1, restore_best_weights=True)])  # fmt: skip
case("reduce_lr", fit={"epochs": 4}, callbacks=lambda _: [
    keras.callbacks.ReduceLROnPlateau("loss", factor=0.1, patience=1, min_delta=0.5)])  # fmt: skip
case("csv_and_tensorboard", callbacks=lambda folder: [
    keras.callbacks.CSVLogger(os.path.join(folder, "log.csv")),
    keras.callbacks.TensorBoard(os.path.join(folder, "board"))])  # fmt: skip
case(
    "swap_ema_weights",
    compile=optimized(adam, 0.02, use_ema=True, ema_momentum=0.8),
    callbacks=lambda _: [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)],
)
case("terminate_on_nan", callbacks=lambda _: [keras.callbacks.TerminateOnNaN()])


class Seen(keras.callbacks.Callback):
    """The logs of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[float]] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches.append([float(np.mean(logs[k])) for k in sorted(logs)])


def run_case(row: Case, scope: Any, folder: str) -> dict[str, Any]:
    """Trains one row's model under `scope()` and returns all that can be compared."""
    keras.utils.set_random_seed(7)
    keras.config.set_dtype_policy(row.policy)
    seen = Seen()
    with scope():
        model = row.model()
        model.compile(**row.compile())
    more = row.callbacks(folder) if row.callbacks else []
    history = model.fit(
        **row.data(), **{"epochs": 2, "verbose": 0, **row.fit}, callbacks=[seen, *more]
    )
    keras.config.set_dtype_policy("float32")
    result = {
        "history": {k: np.array(v, "float64") for k, v in history.history.items()},
        "weights": [np.asarray(w) for w in model.get_weights()],
        "batches": np.array(seen.batches),
        "copies_equal": np.array(copies_equal([*model.weights, *model.optimizer.variables])),
    }
    data = {**arrays(), **row.data()}
    if "evaluate" in row.equal and isinstance(data["x"], (np.ndarray, dict)):
        inputs = {k: data[k] for k in ("x", "y", "batch_size")}
        result["evaluate"] = np.array(model.evaluate(**inputs, verbose=0))
        predicted = model.predict(data["x"], batch_size=BATCH, verbose=0)
        result["predict"] = [np.asarray(p, "float32") for p in tf.nest.flatten(predicted)]
    return result


def copies_equal(variables: list[Any]) -> bool:
    """Whether all replicas of this process hold the same bits."""
    for variable in variables:
        copies = [np.asarray(c) for c in getattr(variable.value, "values", ())]
        if any(c.tobytes() != copies[0].tobytes() for c in copies):
            return False
    return True


# Scripts


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
def save_and_load(scope: Any, folder: str) -> dict[str, Any]:
    path = os.path.join(folder, "model.keras")
    case_model = CASES["clipnorm"]
    keras.utils.set_random_seed(7)
    with scope():
        model = Subclassed()
        model.compile(**case_model.compile())
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
    """A run that is cut after two epochs and taken up again equals one that is not."""

    class Cut(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 2:
                raise InterruptedError

    def train(*callbacks: Any) -> keras.Model:
        keras.utils.set_random_seed(7)
        with scope():
            model = mlp()
            model.compile(**classify())
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
    outside = mlp()
    with scope():
        inside = mlp()
        late = mlp()
        outside.compile(**classify())
        jitted = mlp()
        decorated = DecoratedStep()
        decorated.compile(**classify())
        jitted.compile(**classify(jit_compile=True))
    late.compile(**classify())
    optimizer = adam(0.01)
    with scope():
        foreign = mlp()
        foreign.compile(optimizer, crossentropy())
    unsharded = dataset().batch(BATCH)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    with scope():
        inside.compile(**classify())
    unbatched = {"x": tf.data.Dataset.range(8).map(lambda i: (tf.cast(i, tf.float32), i))}
    said = {}
    for name, call in {
        "model_outside_scope": lambda: fit_in(scope, outside),
        "compile_outside_scope": lambda: late.fit(**arrays(), verbose=0),
        "optimizer_outside_scope": lambda: foreign.fit(**arrays(), verbose=0),
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


def fit_in(scope: Any, model: keras.Model) -> None:
    with scope():
        model.fit(**arrays(), verbose=0)
