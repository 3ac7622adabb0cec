"""The table: what "a standard Keras model" means. A new feature is a new row here.

Each case trains a small model on 42 rows in batches of 16, 16 and 10, so that every one of them
meets a partial last batch, and gives back all that can be compared with one device.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.conformance.data import (
    BATCH,
    CLASSES,
    ROWS,
    Pages,
    arrays,
    binary,
    dataset,
    dataset_without_option_and_weights,
    few,
    finite_generator,
    generator,
    generator_without_option,
    generator_without_targets,
    generator_without_weights,
    images,
    lonely,
    lonely_images,
    lonely_tokens,
    named,
    one_huge_row,
    parts_of_two_sizes,
    rows,
    sequences,
    tokens,
    weights,
    without_option,
)
from tests.conformance.models import (
    Gan,
    GlobalBatch,
    Largest,
    OwnFunctionalStep,
    OwnLoss,
    OwnMeans,
    OwnStep,
    Penalised,
    Positions,
    Subclassed,
    Unlabelled,
    adam,
    attention,
    classify,
    cnn,
    compiled,
    crossentropy,
    deferred,
    embedded,
    hard_triplets,
    loss_scaled,
    mlp,
    optimized,
    regularized,
    rematerialized,
    scalar_loss,
    sgd,
    strided,
    tagger,
    two_heads,
    with_add_loss,
    with_add_loss_of_rows,
    with_option,
    with_state,
    yes_no,
)


@dataclass(frozen=True)
class Case:
    """One row of the table.

    `equal` says what is compared with one device; what is left out is compared between workers
    alone. `atol` is 1e-6, or in half precision as `rtol`, where it is None.
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
    atol: float | None = None


CASES: dict[str, Case] = {}


def case(name: str, **row: Any) -> None:
    defaults = {"model": mlp, "compile": classify, "data": arrays}
    CASES[name] = Case(name, **{**defaults, **row})


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
case("one_row_of_an_image", model=strided, data=lonely_images, compile=optimized(sgd, 0.1))
case(
    "one_row_of_an_image_in_a_train_step",
    model=lambda: strided(OwnFunctionalStep),
    data=lonely_images,
    compile=optimized(sgd, 0.1),
    equal=("history", "weights"),
)
case(
    "one_row_of_a_text",
    model=lambda: embedded(keras.layers.Bidirectional(keras.layers.GRU(3)), keras.layers.Dense(3)),
    data=lonely_tokens,
    compile=optimized(sgd, 0.1),
)
case(
    "one_row_attention",
    model=attention,
    data=lonely_tokens,
    compile=optimized(sgd, 0.1),
    atol=1e-5,  # of sums of hundreds of terms, whose rounding is 1.4e-6, one is nearly zero
)
case(
    "parts_of_two_sizes",
    model=Unlabelled,
    data=parts_of_two_sizes,
    compile=lambda: {"optimizer": sgd(0.1)},
    equal=("history", "weights", "batches"),
)
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
        "optimizer": sgd(0.1),
        "loss": {"c": crossentropy(), "d": "mse"},
        "loss_weights": {"c": 0.3, "d": 0.7},
        "metrics": {"c": ["accuracy"], "d": ["mae"]},
    },
)

# Batches in which something is None

case("optional_input", model=with_option, data=without_option)
case("optional_input_of_one_row", model=with_option, data=lambda: without_option(1))
case(
    "optional_input_generator",
    model=with_option,
    data=lambda: {"x": generator_without_option()},
    fit={"epochs": 1},
)
case(
    "optional_input_tf_data",
    model=with_option,
    data=lambda: {"x": dataset_without_option_and_weights()},
)
case("no_sample_weight", data=lambda: {"x": generator_without_weights()}, fit={"epochs": 1})
case(
    "no_targets",
    model=with_add_loss,
    data=lambda: {"x": generator_without_targets()},
    compile=lambda: {"optimizer": sgd(0.1)},
    fit={"epochs": 1},
)

# Losses and metrics

case("loss_sum", compile=compiled(loss=lambda: crossentropy(reduction="sum")))
case(
    "loss_mean_with_sample_weight",
    data=lambda: {**arrays(), "sample_weight": weights()},
    compile=compiled(loss=lambda: crossentropy(reduction="mean_with_sample_weight")),
)
case("loss_scalar", compile=lambda: {**classify(), "loss": scalar_loss})
case(
    "loss_of_the_batch",
    model=yes_no,
    data=binary,
    compile=lambda: {"optimizer": sgd(1.0), "loss": keras.losses.Dice()},
)
case("loss_of_the_batch_of_few_rows", data=few, compile=lambda: {
    "optimizer": sgd(0.1), "loss": hard_triplets})  # fmt: skip
case("loss_hard_triplets", compile=lambda: {"optimizer": sgd(0.1), "loss": hard_triplets})
case(
    "loss_not_reduced",
    compile=lambda: {"optimizer": sgd(0.01), "loss": crossentropy(reduction="none")},
)
case("loss_masked", model=tagger, data=sequences)
case("regularizers", model=regularized)
case("add_loss", model=with_add_loss)
case("add_loss_of_rows", model=with_add_loss_of_rows, compile=optimized(sgd, 0.1))
case("layer_state", model=with_state, compile=optimized(sgd, 0.1))
case("metric_maximum", compile=lambda: classify(metrics=[Largest(), "accuracy"]))
case("add_loss_of_few_rows", model=with_add_loss, data=few)
case("metric_auc", model=yes_no, data=binary, compile=lambda: {
    "optimizer": sgd(0.1), "loss": "binary_crossentropy",
    "metrics": ["accuracy", keras.metrics.AUC(num_thresholds=20), keras.metrics.Precision()],
})  # fmt: skip
case("metric_top_k", compile=compiled(metrics=[
    "sparse_top_k_categorical_accuracy"]))  # fmt: skip
case("metric_mean_iou", compile=lambda: classify(metrics=[
    keras.metrics.MeanIoU(CLASSES, sparse_y_pred=False)]))  # fmt: skip

# Optimizers

case("adam", compile=optimized(adam, 0.01))
case("clipnorm", compile=optimized(sgd, 0.5, clipnorm=0.05))
case("clipvalue", compile=optimized(sgd, 0.5, clipvalue=0.02))
case("global_clipnorm", compile=optimized(sgd, 0.5, global_clipnorm=0.1))
case("gradient_accumulation", compile=optimized(sgd, 0.2, gradient_accumulation_steps=2))
case("ema", compile=optimized(sgd, 0.2, use_ema=True, ema_momentum=0.8))
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

# Two orders of adding bfloat16 numbers differ in the third digit. An accuracy would count a row of
# which two classes are as likely to that digit, and which of them wins depends on the processor.
case("mixed_bfloat16", policy="mixed_bfloat16", rtol=3e-2, compile=lambda: classify(
    lambda: sgd(1.0), metrics=[keras.metrics.SparseCategoricalCrossentropy(from_logits=True)],
))  # fmt: skip
case("mixed_float16", policy="mixed_float16", compile=optimized(sgd, 0.5), rtol=5e-3)
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
case(
    "means_in_train_step",
    model=OwnMeans,
    compile=lambda: {"optimizer": sgd(0.1)},
    equal=("history", "weights", "batches"),
)
case("gan", model=Gan, compile=dict, equal=("history", "weights"))
case(
    "gradients_in_train_step",
    model=Penalised,
    compile=lambda: classify(lambda: sgd(0.1), metrics=None),
    equal=("history", "weights", "batches"),
)
case(
    "train_step_for_the_global_batch",
    model=GlobalBatch,
    compile=lambda: classify(lambda: sgd(0.1), metrics=None),
    equal=("history", "weights", "batches"),
)
case(
    "multi_optimizer",
    compile=lambda: classify(
        lambda: keras.optimizers.MultiOptimizer(
            keras.optimizers.OptimizerMap(sgd(0.1), {".*kernel": sgd(0.05, clipnorm=0.1)})
        )
    ),
)
case(
    "embedding_of_positions",
    model=lambda: embedded(Positions(), keras.layers.Flatten(), keras.layers.Dense(3), mask=False),
    data=tokens,
)
case("batch_norm_synchronized", model=lambda: cnn(synchronized=True), data=images)
case("batch_norm", model=cnn, data=images, equal=())
case("lstm", model=lambda: embedded(keras.layers.LSTM(6), keras.layers.Dense(3)), data=tokens)
# Not Adam: the key's bias has no gradient but rounding, which Adam makes as large as any other.
case("attention", model=attention, data=tokens, compile=optimized(sgd, 0.1))
case("rematerialized", model=rematerialized, data=tokens, compile=optimized(sgd, 0.1))
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
    compile=optimized(sgd, 0.2, use_ema=True, ema_momentum=0.8),
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
