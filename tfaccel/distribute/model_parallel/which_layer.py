"""Names the layer whose output a mesh computes otherwise than one device.

It is asked for when the first-step check has found a difference: the step is then traced once more,
with the outputs of all layers among its results.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tfaccel.distribute import _private
from tfaccel.distribute.compared import is_near

Outputs = dict[str, tf.Tensor]


def outputs(model: Any, data: Any) -> Outputs:
    """Traces a training step, and returns what its layers gave, in the order in which they did.

    Args:
        model: that trains; the graph of its step is being traced.
        data: a batch.

    Returns:
        Floating tensors of this graph, each by the name of its layer and its number.
    """
    found: Outputs = {}
    graph = tf.compat.v1.get_default_graph()

    def note(layer: Any, result: Any) -> None:
        for tensor in tf.nest.flatten(result):
            if not isinstance(tensor, tf.Tensor) or tensor.graph is not graph:
                continue
            if tensor.dtype.is_floating:
                number = sum(key.rpartition("#")[0] == layer.name for key in found)
                found[f"{layer.name}#{number}"] = tensor

    with _noted(model, note):
        model.train_step(data)
    return found


def first_wrong(model: Any, ours: Any, theirs: Any, tolerance: float) -> str:
    """Says which layer is the first whose output differs, or that none does.

    Args:
        model: that trains.
        ours: arrays by the keys of `outputs`, of the mesh.
        theirs: the same of one device.
        tolerance: relative, of the norm of an output.
    """
    kinds = {layer.name: type(layer).__name__ for layer in _private.layers_of(model)}
    for key, right in theirs.items():
        if key in ours and not is_near(ours[key], right, tolerance):
            name = key.rpartition("#")[0]
            return f"layer {name!r} ({kinds[name]}) is the first whose output differs"
    return "no layer's output differs, so it comes of a gradient, a loss or an update"


@contextlib.contextmanager
def _noted(model: Any, note: Callable[[Any, Any], None]) -> Iterator[None]:
    """Lets `note` see what each layer of `model` returns."""
    layers = [layer for layer in _private.layers_of(model) if layer is not model]
    before = [(layer, vars(layer).get("call")) for layer in layers]
    for layer in layers:
        object.__setattr__(layer, "call", _noting(layer, layer.call, note))
    try:
        yield
    finally:
        for layer, call in before:
            vars(layer).pop("call", None)
            if call is not None:
                object.__setattr__(layer, "call", call)


def _noting(layer: Any, call: Any, note: Callable[[Any, Any], None]) -> Callable[..., Any]:
    @functools.wraps(call)
    def noting(*args: Any, **kwargs: Any) -> Any:
        result = call(*args, **kwargs)
        note(layer, result)
        return result

    return noting
