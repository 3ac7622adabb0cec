"""Where the last softmax of a classifier runs.

``host`` (the default) cuts it off: the firmware returns logits, the largest of which is the class,
and probabilities are computed on the host if needed. ``argmax`` lets the firmware mark the class.
``device`` keeps softmax in the firmware. There hls4ml's default is a pitfall: it looks up the
exponent by the ten highest bits of the logits, whose type is wide enough for every possible sum (38
bits in a small model), so that all logits of real data map to few entries and accuracy is silently
lost. So the logits get a narrow type and the table is enlarged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfaccel.fpga.layer import ACTIVATIONS, Layer

LOGITS = "fixed<16,6>"
TABLE_SIZE = 4096


def is_softmax(layer: Layer) -> bool:
    """Whether this layer's output is a softmax."""
    return layer.kind == "Softmax" or layer.config.get("activation") == "softmax"


def ends(model: Any) -> tuple[str, ...]:
    """The activation that each output of a functional model comes from, such as ``"softmax"``."""
    layers = {id(layer.output): layer for layer in model.layers}
    return tuple(_activation(layers[id(output)]) for output in model.outputs)


def _activation(layer: Any) -> str:
    if type(layer).__name__ == "Softmax":
        return "softmax"
    return str(layer.get_config().get("activation") or "linear")


def without_softmax(model: Any) -> tuple[Any, tuple[bool, ...]]:
    """Removes softmax from the outputs.

    Args:
        model: a functional model; its last layers are changed in place.

    Returns:
        The model that returns logits, and for each output whether softmax is left to the host.
    """
    import keras

    layers = {id(layer.output): layer for layer in model.layers}
    outputs, host = [], []
    for output in model.outputs:
        layer = layers[id(output)]
        config = layer.get_config()
        if layer.__class__.__name__ == "Softmax" or (
            layer.__class__.__name__ == "Activation" and config["activation"] == "softmax"
        ):
            outputs.append(layer.input)
        elif config.get("activation") == "softmax":
            layer.activation = keras.activations.linear
            outputs.append(output)
        else:
            outputs.append(output)
            host.append(False)
            continue
        host.append(True)
    return keras.Model(model.inputs, outputs, name=model.name), tuple(host)


def logits_of(model: Any) -> dict[str, list[str]]:
    """The layers that pass logits to each softmax layer, the nearest first.

    hls4ml leaves Dropout out and Flatten has no type of its own, so the layers before them count
    too.
    """
    givers = {id(layer.output): layer for layer in model.layers}
    logits: dict[str, list[str]] = {}
    for layer in model.layers:
        if _activation(layer) != "softmax" or type(layer).__name__ not in ("Softmax", "Activation"):
            continue
        at = layer
        names: list[str] = []
        while not names or type(at).__name__ in ("Dropout", "Flatten", "Reshape"):
            at = givers[id(at.input)]
            names.append(at.name)
        logits[layer.name] = names
    return logits


def on_device(config: dict[str, Any], mode: str, logits: Mapping[str, Sequence[str]]) -> None:
    """Sets up the softmax layers of an hls4ml configuration, in place.

    Args:
        config: of hls4ml, by layer name; a layer with an activation becomes two there, such as
            ``scores`` and ``scores_softmax``.
        mode: ``"device"`` or ``"argmax"``.
        logits: the layers before each pure softmax layer.
    """
    layers = config["LayerName"]
    for name, layer in layers.items():
        if "exp_table" not in layer.get("Precision", {}):
            continue
        if mode == "argmax":
            layer["Implementation"] = "argmax"
            continue
        layer["TableSize"] = TABLE_SIZE
        for giver in logits.get(name, [name.removesuffix("_softmax")]):
            activated = [f"{giver}_{one}" for one in ACTIVATIONS if one != "softmax"]
            part = next((one for one in activated if one in layers), giver)
            layers[part]["Precision"] = {
                **_as_dict(layers[part].get("Precision")),
                "result": LOGITS,
            }


def _as_dict(precision: Any) -> dict[str, Any]:
    return dict(precision) if isinstance(precision, dict) else {}


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities, over the last axis.

    >>> softmax(np.array([0.0, 0.0]))
    array([0.5, 0.5])
    """
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def one_hot(scores: np.ndarray) -> np.ndarray:
    """One at the largest, otherwise zero: the firmware's output with ``argmax``.

    >>> one_hot(np.array([[0.1, 0.7, 0.2]]))
    array([[0., 1., 0.]])
    """
    return np.asarray(np.eye(scores.shape[-1])[scores.argmax(axis=-1)])
