"""Quantization-aware training with HGQ2: the bits are learnt, and the firmware is bit-exact.

with strategy.scope():
    model = tfaccel.fpga.quantize(build_model())
    model.compile(...)
model.fit(x, y)
tfaccel.fpga.calibrate(model, x)
tfaccel.export_fpga(model, "firmware", check=(x_held_out, y_held_out))
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tfaccel.errors import FpgaError
from tfaccel.fpga.allowlist import check_layers, stays_exact
from tfaccel.fpga.data import rows_of
from tfaccel.fpga.layer import Layer, layers_of
from tfaccel.fpga.optional_imports import require

COUNTERPARTS = {
    "Dense": "QDense",
    "Conv1D": "QConv1D",
    "Conv2D": "QConv2D",
    "BatchNormalization": "QBatchNormalization",
    "AveragePooling2D": "QAveragePooling2D",
    "Add": "QAdd",
}
_INSTEAD = {
    "GlobalAveragePooling2D": "use AveragePooling2D over the whole image and Flatten, or ",
}


def quantize(model: Any, *, beta: float = 1e-6) -> Any:
    """The HGQ2 counterpart of a plain model, with its weights, to be compiled and trained.

    Call it in `strategy.scope()`, like anything that creates a model.

    Args:
        model: Sequential or functional, of layers that have a counterpart (`COUNTERPARTS`); it is
            unchanged.
        beta: the cost of a bit operation in the loss. Larger values give smaller firmware.

    Returns:
        A model of the same form and layer names. A final softmax stays plain, for the host.

    Raises:
        FpgaError: a layer has no counterpart, or trains in less than float32.

    Example:
        ```python
        with strategy.scope():
            model = tfaccel.fpga.quantize(build_model())
            model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        ```
    """
    import keras

    layers = require("hgq.layers")
    model_layers = layers_of(model)
    check_layers(model_layers)
    kinds = {one.name: _counterpart(one) for one in model_layers}

    def change(layer: Any) -> Any:
        config = layer.get_config()
        kind = kinds[layer.name]
        if kind is None and type(layer).__name__ == "ReLU":
            # The same numbers, and hls4ml's translation of a quantized ReLU layer is wrong.
            return keras.layers.Activation("relu", name=layer.name)
        if kind is None:
            return layer.__class__.from_config(config)
        kept = {name: config[name] for name in config if name not in _DROPPED}
        return getattr(layers, kind)(**kept, dtype="float32", beta0=beta)

    return _cloned(model, change)


_DROPPED = ("lora_rank", "quantization_config", "dtype", "build_config")


def _cloned(model: Any, change: Any) -> Any:
    import keras

    cloned = keras.models.clone_model(model, clone_function=change)
    for before in model.layers:
        values = {variable.name: variable for variable in before.variables}
        if not values:
            continue  # an input's name is not kept
        for variable in cloned.get_layer(before.name).variables:
            if variable.name in values and variable.shape == values[variable.name].shape:
                variable.assign(keras.ops.convert_to_numpy(values[variable.name]))
    return cloned


def _counterpart(layer: Layer) -> str | None:
    """The class that quantizes this layer; None for one that is kept.

    Raises:
        FpgaError: there is none.
    """
    where = f"{layer.name} ({layer.kind})"
    policy = layer.config.get("dtype")
    policy = policy.get("config", {}).get("name") if isinstance(policy, dict) else policy
    if policy not in (None, "float32"):
        raise FpgaError(
            f"{where} computes in {policy}; expected float32: HGQ2 rounds in float32; train "
            "quantized models with precision='float32'."
        )
    activation = layer.config.get("activation", "linear")
    if stays_exact(layer) or layer.kind == "ReLU":
        return None
    kind = COUNTERPARTS.get(layer.kind)
    if kind is None:
        raise FpgaError(
            f"{where} has no quantized counterpart; {_INSTEAD.get(layer.kind, '')}use one of "
            f"{', '.join(COUNTERPARTS)}, or export the model unquantized."
        )
    if activation not in ("linear", "relu", None) and not (activation == "softmax" and layer.last):
        raise FpgaError(
            f"{where} has activation {activation}; expected relu or linear: others would be "
            "rounded by tables; use relu, or export the model unquantized."
        )
    return kind


def calibrate(model: Any, x: Any) -> int:
    """Sets the ranges of a trained model's quantizers from the training set (`trace_minmax`).

    In training they follow the batches, on each replica its own rows; an export must cover every
    row. `export_fpga` does it on the rows passed as `calibrate`.

    Args:
        model: from `quantize`; its ranges are set.
        x: the training rows, as in `fit`: an array, or a list for several inputs.

    Returns:
        The model's effective bit operations.

    Raises:
        FpgaError: the rows do not fit the model.
    """
    trace_minmax = require("hgq.utils").trace_minmax
    rows = rows_of(x, [tuple(one.shape) for one in model.inputs])
    arrays = [one.astype(np.float32) for one in rows.x]
    return int(trace_minmax(model, arrays[0] if len(arrays) == 1 else arrays))
