"""Operations whose number of results depends on the data: XLA pads them to their bound.

They compile, and cost memory and compile time that the model's source does not show. So each is
reported, and compiled separately to find its cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from tfaccel.tpu.source_location import Origins, trace

_KINDS = {
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
}


@dataclass(frozen=True)
class Selection:
    """One such operation.

    Attributes:
        operation: its type.
        place: the layer and line that it came from.
        shape: of what it selects from; None if unknown.
        dtype: the same's.
    """

    operation: str
    place: str
    shape: tuple[int, ...] | None
    dtype: tf.DType

    @property
    def elements(self) -> int:
        """How many elements it selects from; 0 if unknown."""
        return tf.TensorShape(self.shape).num_elements() or 0

    def warning(self, cost: str) -> str:
        """One line on it.

        >>> Selection("Where", "layer 'a'", (2, 3), tf.bool).warning("nothing")
        "Where (layer 'a') has a shape ... it is padded to 6 elements, which costs nothing; ..."
        """
        bound = f"{self.elements:,} elements" if self.elements else "its bound"
        return (
            f"{self.operation} ({self.place}) has a shape that depends on data: it is padded to "
            f"{bound}, which costs {cost}; mask instead of selecting"
        )


def selections(graph: tf.Graph, origins: Origins) -> tuple[Selection, ...]:
    """Finds them in `graph` and the functions that it calls, each once."""
    by_place: dict[tuple[str, str], Selection] = {}
    for one in _all(graph, origins):
        by_place.setdefault((one.operation, one.place), one)
    return tuple(by_place.values())


def _all(graph: tf.Graph, origins: Origins) -> Iterator[Selection]:
    for op in graph.get_operations():
        if op.type in _KINDS:
            source = op.inputs[0]
            place = origins.of(op.name, trace(op))
            yield Selection(op.type, place, _known(source.shape), source.dtype)
    for function in graph.as_graph_def(add_shapes=True).library.function:
        shapes = _shapes(function)
        for node in function.node_def:
            if node.op in _KINDS:
                place = origins.of(node.name, (), function.signature.name)
                dtype = tf.as_dtype(node.attr["T"].type)
                yield Selection(node.op, place, shapes.get(node.input[0].split(":")[0]), dtype)


def _shapes(function: Any) -> dict[str, tuple[int, ...] | None]:
    """The shapes of a function's arguments, and of its nodes with one result, by name."""
    arguments = [argument.name for argument in function.signature.input_arg]
    shapes = dict(zip(arguments, function.attr["_input_shapes"].list.shape, strict=False))
    for node in function.node_def:
        results = node.attr["_output_shapes"].list.shape
        if len(results) == 1:
            shapes[node.name] = results[0]
    return {name: _known(tf.TensorShape(shape)) for name, shape in shapes.items()}


def _known(shape: tf.TensorShape) -> tuple[int, ...] | None:
    return tuple(shape.as_list()) if shape.is_fully_defined() else None
