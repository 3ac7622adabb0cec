"""Compares the firmware's outputs with Keras's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfaccel.fpga.report import Check, LayerError

RANGE_SHARE = 0.01
TRACED_ROWS = 32


def compare(
    firmware: Sequence[np.ndarray],
    reference: Sequence[np.ndarray],
    *,
    ends: Sequence[str] = (),
    y: np.ndarray | None = None,
    generated: bool = False,
    quantized: bool = False,
    min_agreement: float = 0.99,
) -> Check:
    """The check of all outputs.

    A row of class scores (softmax, or with `y`) agrees when the largest is at the same index. A row
    of other numbers agrees when each differs by at most a hundredth of the range of Keras's
    outputs.

    Args:
        firmware: each output, rows first.
        reference: the same of Keras.
        ends: the activation that each output comes from.
        y: class numbers, of the first output.
        generated: the rows are generated, so the check neither passes nor fails.
        quantized: every row must be bit-identical.
        min_agreement: otherwise, the fraction of the rows that must agree.

    Returns:
        The check, without the errors of layers.
    """
    rows = len(reference[0])
    pairs = [
        (np.asarray(a, np.float64).reshape(np.shape(b)), np.asarray(b, np.float64))
        for a, b in zip(firmware, reference, strict=True)
    ]
    exact = np.ones(rows, bool)
    agreement, measure, maximum = 1.0, "argmax", 0.0
    ends = ends or [""] * len(pairs)
    for n, ((emulated, expected), end) in enumerate(zip(pairs, ends, strict=True)):
        exact &= (emulated == expected).reshape(rows, -1).all(axis=1)
        classes = end == "softmax" or (n == 0 and y is not None and end != "sigmoid")
        same, how = _agree(emulated, expected, classes and expected.shape[-1] > 1)
        if same.mean() <= agreement:
            agreement, measure = float(same.mean()), how
        difference = np.abs(emulated - expected)
        # A NaN on either side is an infinite error.
        maximum = max(maximum, float(np.where(np.isnan(difference), np.inf, difference).max()))
    good = bool(exact.all()) if quantized else agreement >= min_agreement
    accuracies: list[float | None] = [None, None]
    if y is not None:
        emulated, expected = pairs[0]
        accuracies = [_accuracy(emulated, y, ends[0]), _accuracy(expected, y, ends[0])]
    return Check(
        status="unverified" if generated else "passed" if good else "failed",
        rows=rows,
        exact=int(exact.sum()),
        agreement=agreement,
        measure=measure,
        maximum=maximum,
        required=1.0 if quantized else min_agreement,
        accuracy=accuracies[0],
        keras_accuracy=accuracies[1],
    )


def _agree(emulated: np.ndarray, expected: np.ndarray, classes: bool) -> tuple[np.ndarray, str]:
    rows = len(expected)
    if classes:
        # The argmax of NaN is always the first index.
        same = (emulated.argmax(-1) == expected.argmax(-1)) & np.isfinite(expected).all(-1)
        return same.reshape(rows, -1).all(axis=1), "argmax"
    allowed = RANGE_SHARE * float(expected.max() - expected.min())
    close = (np.abs(emulated - expected) <= allowed).reshape(rows, -1).all(axis=1)
    return close, "within 1% of the range"


def _accuracy(scores: np.ndarray, y: np.ndarray, end: str) -> float | None:
    if scores.ndim != 2:
        return None
    if scores.shape[1] > 1:
        return float((scores.argmax(-1) == y).mean())
    if end == "sigmoid" and np.isin(y, (0, 1)).all():
        return float(((scores[:, 0] > 0.5) == y).mean())
    return None


def layer_errors(
    model: Any, x: Sequence[np.ndarray], traced: dict[str, np.ndarray]
) -> tuple[LayerError, ...]:
    """The error of each layer, in model order.

    Args:
        model: the functional Keras model that was converted.
        x: the rows that were traced.
        traced: the output of each firmware layer, by its name there. hls4ml splits a layer with an
            activation into two: `name` and `name_relu`.
    """
    import keras

    probed = [
        (layer, name)
        for layer in model.layers
        if (name := _name_in(layer, traced)) and not isinstance(layer, keras.layers.InputLayer)
    ]
    if not probed:
        return ()
    probe = keras.Model(model.inputs, [layer.output for layer, _ in probed])
    inputs = list(x) if len(x) > 1 else x[0]
    expected = probe.predict(inputs, verbose=0)
    expected = expected if isinstance(expected, list) else [expected]
    errors = []
    for (layer, name), want in zip(probed, expected, strict=True):
        emulated = traced[name]
        if emulated.size != want.size:
            continue
        off = np.abs(emulated.reshape(want.shape) - want)
        errors.append(LayerError(layer.name, float(off.max()), float(np.abs(want).max())))
    return tuple(errors)


def _name_in(layer: Any, traced: dict[str, np.ndarray]) -> str | None:
    activation = layer.get_config().get("activation")
    with_activation = f"{layer.name}_{activation}"
    return next((one for one in (with_activation, layer.name) if one in traced), None)
