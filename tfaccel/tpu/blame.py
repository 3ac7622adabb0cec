"""Finds the layer and the line of a model that an operation came from."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import keras
import tensorflow as tf

from tfaccel.distribute import _private

# Operations whose results have as many elements as the data says. XLA gives them their bound.
_DATA_DEPENDENT = (
    "Where",
    "Unique",
    "UniqueV2",
    "UniqueWithCounts",
    "UniqueWithCountsV2",
    "ListDiff",
    "DynamicPartition",
    "NonMaxSuppression",
    "NonMaxSuppressionV2",
    "NonMaxSuppressionV3",
    "NonMaxSuppressionV4",
)
_LIBRARIES = ("/tensorflow/", "/keras/", "/tfaccel/", "/keras_hub/")


class UnsupportedError(Exception):
    """An operation that a TPU's compiler does not have; its text is one line."""


def unsupported(message: str, model: keras.Model) -> UnsupportedError | None:
    """Reads TensorFlow's complaint about an operation.

    >>> unsupported("nothing of the kind", None) is None
    True
    """
    found = re.search(r"on XLA_\w+: (\w+) \(.*?\{\{node ([^}]+)\}\}", message, re.DOTALL)
    if found is None:
        return None
    name, node = found.groups()
    frames = re.findall(r'File "([^"]+)", line (\d+), in (\w+)', message)
    return UnsupportedError(
        f"operation {name} ({layer(node, model)}{_line(frames)}) is none that XLA can compile; "
        "take it out of the step (tf.data runs on the host), or write it with keras.ops"
    )


def data_dependent(graph: tf.Graph, model: keras.Model) -> tuple[str, ...]:
    """A warning for each operation of `graph` whose shape depends on data."""
    said = []
    for op in graph.get_operations():
        if op.type in _DATA_DEPENDENT:
            frames = [(f.filename, str(f.lineno), f.name) for f in op.traceback or ()]
            size = op.inputs[0].shape.num_elements()
            bound = f"{size:,} elements" if size else "its bound"
            said.append(
                f"{op.type} ({layer(op.name, model)}{_line(frames)}) has a shape that depends on "
                f"data: it is padded to {bound}, which costs memory and compile time; mask "
                "instead of selecting"
            )
    functions = graph.as_graph_def().library.function
    for function in functions:
        for node in function.node_def:
            if node.op in _DATA_DEPENDENT:
                said.append(
                    f"{node.op} ({layer(node.name, model)}, in {function.signature.name}) has a "
                    "shape that depends on data: it is padded to its bound"
                )
    return tuple(said)


def layer(node: str, model: keras.Model) -> str:
    """Names the layer in whose scope a node stands.

    Keras adds a number to a scope that it enters again.
    """
    names = {one.name for one in _private.layers_of(model)} - {model.name}
    for part in reversed(node.split("/")[:-1]):
        plain = re.sub(r"_\d+$", "", part)
        for candidate in (part, plain):
            if candidate in names:
                return f"layer {candidate!r}"
    return f"node {node!r}"


def _line(frames: Iterable[tuple[str, str, str]]) -> str:
    """The innermost line that is not a library's."""
    own = [f for f in frames if not any(library in f[0] for library in _LIBRARIES)]
    if not own:
        return ""
    file, number, _ = own[-1]
    return f", {Path(file).name} line {number}"
