"""A Keras model as a list of layers, with only what the allowlist inspects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tfaccel.errors import FpgaError

#: Those that hls4ml translates correctly.
ACTIVATIONS = ("linear", "relu", "sigmoid", "tanh", "selu", "softmax")

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes:
        name: its name in the model.
        kind: its class, such as ``"Dense"``.
        package: where the class comes from: ``"keras"``, ``"hgq"`` or another top-level module.
        config: from its `get_config`.
        inputs: the shape of each input, the batch first.
        output: the shape of what it returns.
        last: its output is an output of the model.
        calls: how often the model calls it.
        feeds: other layers take its output.
        before: the layer that its input comes from, if it is a single one, skipping pass-through
            layers.
    """

    name: str
    kind: str
    package: str = "keras"
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[Shape, ...] = ()
    output: Shape = ()
    last: bool = False
    calls: int = 1
    feeds: bool = False
    before: Layer | None = None


def layers_of(model: Any) -> list[Layer]:
    """The layers of a built Sequential or functional model, inputs first.

    Args:
        model: a `keras.Model`.

    Raises:
        FpgaError: its graph cannot be read: it is subclassed, or not built.
    """
    import keras

    from tfaccel.distribute import _private

    graph = _graph(model, keras)
    outputs = {id(one) for one in keras.tree.flatten(graph.outputs)}
    used = _private.graph_nodes(graph)
    taken = {id(one) for node in used for one in node.input_tensors}
    by_tensor: dict[int, Layer] = {}
    for layer in graph.layers:
        nodes = [node for node in used if node.operation is layer]
        if not nodes:
            continue
        node_inputs = nodes[0].input_tensors
        node_outputs = [one for node in nodes for one in node.outputs]
        one = Layer(
            name=layer.name,
            kind=type(layer).__name__,
            package=type(layer).__module__.partition(".")[0],
            config=layer.get_config(),
            inputs=tuple(tuple(one.shape) for one in node_inputs),
            output=tuple(nodes[0].outputs[0].shape),
            last=any(id(one) in outputs for one in node_outputs),
            calls=len(nodes),
            feeds=any(id(one) in taken for one in node_outputs),
            before=_through(by_tensor.get(id(node_inputs[0]))) if len(node_inputs) == 1 else None,
        )
        by_tensor |= {id(tensor): one for tensor in node_outputs}
    return list({id(one): one for one in by_tensor.values()}.values())


def _through(layer: Layer | None) -> Layer | None:
    """The first layer, going back, that has an effect at inference."""
    while layer is not None and (
        layer.kind == "Dropout"
        or (layer.kind == "Activation" and layer.config.get("activation") == "linear")
    ):
        layer = layer.before
    return layer


def _graph(model: Any, keras: Any) -> Any:
    if not isinstance(model, keras.Model):
        raise FpgaError(f"a {type(model).__name__}; expected a keras.Model; load it first.")
    functional = isinstance(model, keras.Sequential) or type(model).__name__ == "Functional"
    if not functional:
        raise FpgaError(
            f"{model.name} is a {type(model).__name__}; expected a Sequential or functional model: "
            "hls4ml cannot follow Python code; build it with keras.Model(inputs, outputs)."
        )
    if not model.built:
        raise FpgaError(
            f"{model.name} is not built; expected known shapes; put keras.Input(shape) first."
        )
    return (
        keras.Model(model.inputs, model.outputs) if isinstance(model, keras.Sequential) else model
    )
