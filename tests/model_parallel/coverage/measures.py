"""Rows of the losses and the metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import losses, metrics

from tests.model_parallel.coverage.row import ROWS, STEPS, Row, ids, padded, reals, shares


def _model(units: int, activation: str | None) -> Callable[[], Any]:
    def model() -> keras.Model:
        return keras.Sequential(
            [
                keras.Input((8,)),
                keras.layers.Dense(8, "relu"),
                keras.layers.Dense(units, activation),
            ]
        )

    return model


def _one_hot(classes: int) -> np.ndarray:
    return np.eye(classes, dtype="float32")[ids(classes, seed=1)]


# What a target can be: the activation before it, the units, and itself.
KINDS: dict[str, tuple[str | None, int, Callable[[], Any]]] = {
    "number": (None, 2, lambda: reals(2, seed=1)),
    "share": ("sigmoid", 2, lambda: shares(2, seed=1)),
    "yes_no": ("sigmoid", 1, lambda: ids(2, 1, seed=1).astype("float32")),
    "yes_nos": ("sigmoid", 4, lambda: ids(2, 4, seed=1).astype("float32")),
    "plus_minus": ("tanh", 1, lambda: ids(2, 1, seed=1).astype("float32") * 2 - 1),
    "class": ("softmax", 4, lambda: ids(4, seed=1)),
    "one_hot": ("softmax", 4, lambda: _one_hot(4)),
    "embedding": (None, 4, lambda: ids(3, seed=1)),
}

LOSSES = {
    "BinaryCrossentropy": "yes_nos",
    "BinaryFocalCrossentropy": "yes_nos",
    "CategoricalCrossentropy": "one_hot",
    "CategoricalFocalCrossentropy": "one_hot",
    "CategoricalGeneralizedCrossEntropy": "class",
    "CategoricalHinge": "one_hot",
    "CosineSimilarity": "number",
    "Dice": "yes_nos",
    "Hinge": "plus_minus",
    "Huber": "number",
    "KLDivergence": "share",
    "LogCosh": "number",
    "MeanAbsoluteError": "number",
    "MeanAbsolutePercentageError": "share",
    "MeanSquaredError": "number",
    "MeanSquaredLogarithmicError": "share",
    "Poisson": "share",
    "SparseCategoricalCrossentropy": "class",
    "SquaredHinge": "plus_minus",
    "Tversky": "yes_nos",
}

METRICS: dict[str, tuple[str, Callable[[], Any]]] = {
    "AUC": ("yes_no", metrics.AUC),
    "AUC of PR and multi_label": (
        "yes_nos",
        lambda: metrics.AUC(curve="PR", multi_label=True, num_labels=4),
    ),
    "Accuracy": ("yes_nos", metrics.Accuracy),
    "BinaryAccuracy": ("yes_nos", metrics.BinaryAccuracy),
    "BinaryCrossentropy": ("yes_nos", metrics.BinaryCrossentropy),
    "BinaryIoU": ("yes_no", metrics.BinaryIoU),
    "CategoricalAccuracy": ("one_hot", metrics.CategoricalAccuracy),
    "CategoricalCrossentropy": ("one_hot", metrics.CategoricalCrossentropy),
    "CategoricalHinge": ("one_hot", metrics.CategoricalHinge),
    "ConcordanceCorrelation": ("yes_nos", metrics.ConcordanceCorrelation),
    "CosineSimilarity": ("number", metrics.CosineSimilarity),
    "F1Score": ("one_hot", metrics.F1Score),
    "F1Score macro": ("one_hot", lambda: metrics.F1Score("macro", 0.5)),
    "FBetaScore": ("one_hot", metrics.FBetaScore),
    "FalseNegatives": ("yes_no", metrics.FalseNegatives),
    "FalsePositives": ("yes_no", metrics.FalsePositives),
    "Hinge": ("plus_minus", metrics.Hinge),
    "IoU": (
        "one_hot",
        lambda: metrics.IoU(4, [0, 1], sparse_y_true=False, sparse_y_pred=False),
    ),
    "KLDivergence": ("share", metrics.KLDivergence),
    "LogCoshError": ("number", metrics.LogCoshError),
    "MeanAbsoluteError": ("number", metrics.MeanAbsoluteError),
    "MeanAbsolutePercentageError": ("number", metrics.MeanAbsolutePercentageError),
    "MeanIoU": ("class", lambda: metrics.MeanIoU(4, sparse_y_pred=False)),
    "MeanMetricWrapper": (
        "number",
        lambda: metrics.MeanMetricWrapper(keras.losses.mean_squared_error, name="own"),
    ),
    "MeanSquaredError": ("number", metrics.MeanSquaredError),
    "MeanSquaredLogarithmicError": ("share", metrics.MeanSquaredLogarithmicError),
    "OneHotIoU": ("one_hot", lambda: metrics.OneHotIoU(4, [0, 2])),
    "OneHotMeanIoU": ("one_hot", lambda: metrics.OneHotMeanIoU(4)),
    "PearsonCorrelation": ("yes_nos", metrics.PearsonCorrelation),
    "Poisson": ("share", metrics.Poisson),
    "Precision": ("yes_no", metrics.Precision),
    "Precision top_k": ("one_hot", lambda: metrics.Precision(top_k=2)),
    "PrecisionAtRecall": ("yes_no", lambda: metrics.PrecisionAtRecall(0.5)),
    "R2Score": ("number", metrics.R2Score),
    "Recall": ("yes_no", metrics.Recall),
    "RecallAtPrecision": ("yes_no", lambda: metrics.RecallAtPrecision(0.5)),
    "RootMeanSquaredError": ("number", metrics.RootMeanSquaredError),
    "SensitivityAtSpecificity": ("yes_no", lambda: metrics.SensitivityAtSpecificity(0.5)),
    "SparseCategoricalAccuracy": ("class", metrics.SparseCategoricalAccuracy),
    "SparseCategoricalCrossentropy": ("class", metrics.SparseCategoricalCrossentropy),
    "SparseTopKCategoricalAccuracy": ("class", lambda: metrics.SparseTopKCategoricalAccuracy(2)),
    "SpecificityAtSensitivity": ("yes_no", lambda: metrics.SpecificityAtSensitivity(0.5)),
    "SquaredHinge": ("plus_minus", metrics.SquaredHinge),
    "TopKCategoricalAccuracy": ("one_hot", lambda: metrics.TopKCategoricalAccuracy(2)),
    "TrueNegatives": ("yes_no", metrics.TrueNegatives),
    "TruePositives": ("yes_no", metrics.TruePositives),
}


def _row(name: str, group: str, kind: str, **more: Any) -> Row:
    activation, units, target = KINDS[kind]
    return Row(name, group, _model(units, activation), lambda: (reals(8), target()), **more)


def _ctc() -> Row:
    def model() -> keras.Model:
        inputs = keras.Input((8, 8))
        return keras.Model(inputs, keras.layers.Dense(6)(inputs))

    def data() -> tuple[Any, Any]:
        return reals(8, 8), np.random.default_rng(1).integers(1, 6, (ROWS, 3)).astype("int32")

    return Row("CTC", "Losses", model, data, losses.CTC)


def _masked() -> Row:
    def model() -> keras.Model:
        inputs = keras.Input((6,), dtype="int32")
        x = keras.layers.Embedding(12, 8, mask_zero=True)(inputs)
        return keras.Model(inputs, keras.layers.Dense(4)(x))

    def data() -> tuple[Any, Any]:
        return padded(12, 6), reals(6, 4, seed=1)

    name = "MeanAbsoluteError under a mask (metric)"
    return Row(name, "Metrics", model, data, metrics=lambda: [metrics.MeanAbsoluteError()])


def _sure() -> Row:
    """Probabilities so near 0 that their logarithm is right through the logits alone."""

    def model() -> keras.Model:
        inputs = keras.Input((8,))
        x = keras.layers.Rescaling(100.0)(inputs)
        return keras.Model(inputs, keras.layers.Dense(4, "softmax")(x))

    loss = losses.SparseCategoricalCrossentropy()
    name = "SparseCategoricalCrossentropy of sure predictions"
    return Row(name, "Losses", model, lambda: (reals(8), ids(4, seed=1)), loss, rate=1e-4)


def rows() -> list[Row]:
    made = [_row(name, "Losses", kind, loss=getattr(losses, name)) for name, kind in LOSSES.items()]
    made += [
        _ctc(),
        _sure(),
        _masked(),
        # Its own gamma of 80 makes a difference of 1e-7 in a cosine one of 1e-5 in the loss.
        _row("Circle", "Losses", "embedding", loss=losses.Circle(gamma=4.0)),
    ]
    made.append(
        _row(
            "SparseCategoricalCrossentropy with ignore_class",
            "Losses",
            "class",
            loss=losses.SparseCategoricalCrossentropy(ignore_class=0),
        )
    )
    for name, (kind, make) in METRICS.items():
        loss = losses.SparseCategoricalCrossentropy if kind == "class" else "mse"
        made.append(
            _row(f"{name} (metric)", "Metrics", kind, loss=loss, metrics=lambda m=make: [m()])
        )
    return [dataclasses.replace(row, compared=STEPS) for row in made]
