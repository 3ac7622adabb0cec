"""Attributes a difference to the first layer whose output differs from one device's.

It runs when the first-step check has found a difference: the step is then retraced, with the
outputs of all layers among its results.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tfaccel.distribute import _private
from tfaccel.distribute.differences import is_near
from tfaccel.distribute.replacements import Replacements

LayerOutputs = dict[str, tf.Tensor]


def layer_outputs(model: Any, kind: str, data: Any) -> LayerOutputs:
    """Traces a step, and returns the outputs of its layers, in call order.

    Args:
        model: whose step it is; its graph is being traced.
        kind: of the step: ``"train"``, ``"test"`` or ``"predict"``.
        data: a batch.

    Returns:
        Floating tensors of this graph, each by the name of its layer and its number.
    """
    outputs: LayerOutputs = {}
    graph = tf.compat.v1.get_default_graph()

    def record(layer: Any, result: Any) -> None:
        for tensor in tf.nest.flatten(result):
            if not isinstance(tensor, tf.Tensor) or tensor.graph is not graph:
                continue
            if tensor.dtype.is_floating:
                number = sum(key.rpartition("#")[0] == layer.name for key in outputs)
                outputs[f"{layer.name}#{number}"] = tensor

    with _outputs_recorded(model, record):
        getattr(model, f"{kind}_step")(data)
    return outputs


def first_divergent(model: Any, mesh_outputs: Any, reference: Any, tolerance: float) -> str:
    """Names the first layer whose output differs, or reports that there is none.

    Args:
        model: whose step it is.
        mesh_outputs: arrays by the keys of `layer_outputs`, of the mesh.
        reference: the same of one device.
        tolerance: relative, of the norm of an output.
    """
    kinds = {layer.name: type(layer).__name__ for layer in _private.layers_of(model)}
    for key, expected in reference.items():
        if key in mesh_outputs and not is_near(mesh_outputs[key], expected, tolerance):
            name = key.rpartition("#")[0]
            return f"layer {name!r} ({kinds[name]}) is the first whose output differs"
    return "no layer's output differs, so it comes of a gradient, a loss or an update"


@contextlib.contextmanager
def _outputs_recorded(model: Any, record: Callable[[Any, Any], None]) -> Iterator[None]:
    """Lets `record` see what each layer of `model` returns."""
    layers = [layer for layer in _private.layers_of(model) if layer is not model]
    with Replacements() as replacements:
        for layer in layers:
            replacements.replace(layer, "call", _recording(layer, layer.call, record))
        yield


def _recording(layer: Any, call: Any, record: Callable[[Any, Any], None]) -> Callable[..., Any]:
    @functools.wraps(call)
    def recording(*args: Any, **kwargs: Any) -> Any:
        result = call(*args, **kwargs)
        record(layer, result)
        return result

    return recording
