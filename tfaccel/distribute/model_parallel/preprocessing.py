"""Runs the part of a model that looks up strings and tables on the host, as part of the input.

Devices of a mesh do not support strings, nor DTensor tables. A functional or Sequential model is
split behind such layers: the part before the split is mapped over the dataset, and the steps on the
mesh get its outputs. The model itself, its files and `model(x)` are unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfaccel.distribute import _private

_PREFIX = "tfaccel_input_"


def runs_on_host(layer: Any) -> bool:
    """Whether a layer cannot be part of a step on a mesh: it looks up or counts values."""
    tables = (
        keras.layers.HashedCrossing,
        keras.layers.IntegerLookup,
        keras.layers.StringLookup,
        keras.layers.TextVectorization,
    )
    return isinstance(layer, tables) or getattr(layer, "output_mode", "") in ("multi_hot", "count")


class HostPart:
    """A model in two: what runs on the host, and what runs on the mesh.

    Args:
        model: functional.
        nodes: calls of layers that run on the host, with their dependencies.

    Attributes:
        layers: the layers of the host's part, and those inside them.
    """

    def __init__(self, model: Any, nodes: list[Any]) -> None:
        inside = {id(node) for node in nodes}
        produced = {id(t): t for node in nodes for t in node.outputs}
        used = [
            t
            for node in _private.graph_nodes(model)
            if id(node) not in inside
            for t in node.arguments.keras_tensors
        ]
        boundary = list({id(t): t for t in [*used, *model.outputs] if id(t) in produced}.values())
        self._host = keras.Model(model.input, boundary, name=f"{model.name}_host")
        # Building a model between tensors inside another changes that one's call records.
        self._mesh = keras.Function(boundary, model.output)
        self.layers = {id(each) for node in nodes for each in _all_of(node.operation)}

    def on_host(self, batch: Any) -> Any:
        """A batch of the dataset, with its inputs replaced by the mesh's."""
        x, y, weights = keras.utils.unpack_x_y_sample_weight(batch)
        if _is_from_host(x):
            return batch
        outputs = tf.nest.flatten(self._host(x, training=False))
        named = {f"{_PREFIX}{i:03}": value for i, value in enumerate(outputs)}
        return keras.utils.pack_x_y_sample_weight(named, y, weights)

    def on_mesh(self, named: Any, training: Any) -> Any:
        """The model's output for a batch of `on_host`."""
        flat = [named[name] for name in sorted(named)]
        return _private.run_function(self._mesh, flat, training)

    def mapped(self, dataset: tf.data.Dataset, read_ahead: bool) -> tf.data.Dataset:
        """`dataset`, mapped by `on_host`.

        Args:
            dataset: of batches.
            read_ahead: whether batches are prefetched.
        """

        def on_host(*batch: Any) -> Any:
            return self.on_host(batch if len(batch) > 1 else batch[0])

        options = dataset.options()
        on_host = tf.autograph.experimental.do_not_convert(on_host)
        calls = tf.data.AUTOTUNE if read_ahead else None
        return dataset.map(on_host, num_parallel_calls=calls).with_options(options)


def map_host_part(model: Any, dataset: tf.data.Dataset, read_ahead: bool) -> tf.data.Dataset:
    """`dataset` for the mesh: with the host's part of `model` mapped over its batches.

    Args:
        model: that reads the data; a Sequential one without an Input is built.
        dataset: of batches.
        read_ahead: as in `HostPart.mapped`.

    """
    x = dataset.element_spec[0] if isinstance(dataset.element_spec, tuple) else dataset.element_spec
    looking = [layer for layer in _private.layers_of(model) if runs_on_host(layer)]
    if looking and isinstance(model, keras.Sequential) and not model.built:
        model.build(tuple(x.shape))
    if (part := host_part(model)) is not None:
        return part.mapped(dataset, read_ahead)
    return dataset


def stays_on_host(batch: Any) -> str | None:
    """Why a batch cannot be put on a mesh; None where it can.

    Args:
        batch: a nest of arrays and tensors, or of their specs.
    """
    for leaf in tf.nest.flatten(batch):
        kind = getattr(leaf, "value_type", type(leaf))
        if issubclass(kind, (tf.RaggedTensor, tf.SparseTensor)):
            return f"it is given a {kind.__name__}, which a mesh does not divide"
        if tf.as_dtype(getattr(leaf, "dtype", tf.float32)) == tf.string:
            return "it is given strings, which the devices of a mesh do not support"
    return None


def host_part(model: Any) -> HostPart | None:
    """The part of `model` that runs on the host, or None; determined once."""
    if not hasattr(model, "_tfaccel_host_part") or model._tfaccel_host_part[0] != model.built:
        object.__setattr__(model, "_tfaccel_host_part", (model.built, _find_host_part(model)))
    part: HostPart | None = model._tfaccel_host_part[1]
    return part


def call_model(call: Callable[..., Any], model: Any, *args: Any, **kwargs: Any) -> Any:
    """`call` of a model, which may get the outputs of its host part as inputs."""
    if not args or not _is_from_host(args[0]):
        return call(*args, **kwargs)
    part = host_part(model)
    assert part is not None
    return part.on_mesh(args[0], kwargs.get("training", args[1] if len(args) > 1 else None))


def _is_from_host(x: Any) -> bool:
    return isinstance(x, dict) and bool(x) and all(str(key).startswith(_PREFIX) for key in x)


def _find_host_part(model: Any) -> HostPart | None:
    functional = _private.functional_of(model)
    if functional is None:
        return None
    nodes = _private.graph_nodes(functional)
    makers = {id(t): node for node in nodes for t in node.outputs}
    host_nodes: dict[int, Any] = {}

    def take(node: Any) -> None:
        if id(node) not in host_nodes:
            host_nodes[id(node)] = node
            for tensor in node.arguments.keras_tensors:
                take(makers[id(tensor)])

    for node in nodes:
        strings = any(t.dtype == "string" for t in node.arguments.keras_tensors)
        if strings or any(map(runs_on_host, _all_of(node.operation))):
            take(node)
    if not host_nodes:
        return None
    if any(getattr(node.operation, "trainable_weights", ()) for node in host_nodes.values()):
        return None  # trained layers cannot move to the input: the step is not divided
    for node in nodes:
        if not node.arguments.keras_tensors:
            take(node)  # an input
    return HostPart(functional, list(host_nodes.values()))


def _all_of(operation: Any) -> list[Any]:
    return _private.layers_of(operation) if isinstance(operation, keras.layers.Layer) else []
