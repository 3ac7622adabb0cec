"""Reads a traced training step: its operations and values, including functions that it calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from tfaccel.distribute import _private
from tfaccel.planner import step_parts
from tfaccel.planner.abstract import AbstractStrategy
from tfaccel.planner.steps import Operation, Step, Value

_BACKWARD = "gradient_tape"
# Types of inputs that define an operation's effect on dimensions.
_AXES = {
    **dict.fromkeys(("Sum", "Mean", "Max", "Min", "Prod", "All", "Any", "ArgMax", "ArgMin"), 1),
    **dict.fromkeys(("Transpose", "ExpandDims", "Pad", "PadV2", "ReverseV2", "Tile"), 1),
    **dict.fromkeys(("GatherV2", "ResourceGather"), 2),
    "SplitV": 2,
    "Split": 0,
    "ConcatV2": -1,
}
_ATTRIBUTES = (
    "transpose_a", "transpose_b", "adj_x", "adj_y", "equation", "keep_dims", "axis", "batch_dims",
    "squeeze_dims", "data_format",
)  # fmt: skip


def read(
    few: Any,
    graph: Any,
    part: step_parts.Part,
    pairs: Sequence[Any],
    strategy: AbstractStrategy,
    rows: tuple[int, int],
) -> Step:
    """Reads the step of one of a graph's updates.

    Args:
        few: the graph for the smaller batch.
        graph: that for the larger one.
        part: the operations of both that belong to the step.
        pairs: of variables and gradients, in the larger one.
        strategy: which variables belong to it.
        rows: of each batch.
    """
    reader = _Reader(strategy)
    number_of = {id(op): i for i, op in enumerate(graph.get_operations())}
    captures = [(outside, inside) for outside, inside in graph.captures
                if number_of[id(inside.op)] not in part.left_out]  # fmt: skip
    captured = {id(inside) for _, inside in captures}
    reader.constants = sum(_bytes(out) for out, _ in captures if out.dtype != tf.resource)
    for outside, inside in captures:
        if id(outside) in reader.variables:
            reader.handles[id(inside)] = reader.variables[id(outside)]
    reader.read(few, graph, None, False, part)
    number = reader.number
    return Step(
        rows=rows,
        values=tuple(reader.values),
        operations=tuple(reader.made),
        arguments=tuple(
            number[id(t)] for t in graph.inputs if id(t) in number and id(t) not in captured
        ),
        results=tuple(number[id(t)] for t in graph.outputs if id(t) in number),
        gradients=dict(_gradients(pairs, reader.variables, number)),
        constants=reader.constants,
        captured={number[id(inside)]: _bytes(out) for out, inside in captures
                  if out.dtype != tf.resource and id(inside) in number},
        uncounted=reader.uncounted,
    )  # fmt: skip


class _Reader:
    """Reads the graphs of two batches side by side, including functions that they call."""

    def __init__(self, strategy: AbstractStrategy) -> None:
        self.shapes = [made.shape for made in strategy.made]
        self.variables = {id(made.variable.handle): i for i, made in enumerate(strategy.made)}
        self.handles: dict[int, int] = {}
        self.attributes: dict[str, list[str]] = {}
        self.number: dict[int, int] = {}
        self.values: list[Value] = []
        self.made: list[Operation] = []
        self.constants = 0
        self.uncounted = ""

    def read(
        self, few: Any, graph: Any, inputs: Any, backward: bool, part: step_parts.Part
    ) -> None:
        """Reads a graph.

        Args:
            few: that of the smaller batch.
            graph: that of the larger one.
            inputs: a function's inputs in the calling graph; None for the step.
            backward: whether that graph calls it for a gradient.
            part: the operations to read.
        """
        given = {} if inputs is None else {
            id(inside): outside for inside, outside in zip(graph.inputs, inputs, strict=True)
        }  # fmt: skip
        ends: dict[int, tuple[int, ...]] = {}  # what stands for an operation that others wait for
        more, fewer = graph.get_operations(), few.get_operations()
        for k in part.operations:
            op, smaller = more[k], fewer[k]
            outside = given.get(id(op.outputs[0])) if op.outputs else None
            if outside is not None:
                self._is(op.outputs[0], outside)
                ends[k] = ()
                continue
            after = tuple(i for o in sorted(part.waits[k]) for i in ends.get(o, ()))
            begun = len(self.made)
            if _private.only_calls(op.type) and self._inline(op, smaller, few, graph, backward):
                ends[k] = tuple(range(begun, len(self.made)))
            elif op.type == "IdentityN":
                # Grappler leaves it out: whoever uses a result waits for that one alone.
                sources = [[self.number[id(t)]] if id(t) in self.number else [] for t in op.inputs]
                self._pass(op, smaller, sources, after, backward or _BACKWARD in op.name)
                ends[k] = tuple(range(begun, len(self.made)))
            else:
                self._add(op, smaller, after, backward or _BACKWARD in op.name)
                ends[k] = (begun,)

    def _is(self, inside: Any, outside: Any) -> None:
        if id(outside) in self.handles:
            self.handles[id(inside)] = self.handles[id(outside)]
        if id(outside) in self.number:
            self.number[id(inside)] = self.number[id(outside)]

    def _add(self, op: Any, smaller: Any, after: tuple[int, ...], backward: bool) -> None:
        if op.type == "Identity" and id(op.inputs[0]) in self.handles:
            self.handles[id(op.outputs[0])] = self.handles[id(op.inputs[0])]
        variable = next((self.handles[id(t)] for t in op.inputs if id(t) in self.handles), None)
        for more, fewer in zip(op.outputs, smaller.outputs, strict=True):
            shapes = shape_of(fewer), shape_of(more)
            if op.type == "ReadVariableOp" and variable is not None:
                shapes = (self.shapes[variable],) * 2
            self.number[id(more)] = len(self.values)
            self.values.append(Value(*shapes, int(more.dtype.size)))
        if _private.only_calls(op.type) or any(t.dtype == tf.variant for t in op.outputs):
            self.uncounted = self.uncounted or op.type
        self.made.append(
            Operation(
                name=op.name,
                kind=op.type,
                inputs=tuple(self.number[id(t)] for t in op.inputs if id(t) in self.number),
                outputs=tuple(self.number[id(t)] for t in op.outputs),
                after=after,
                variable=variable,
                backward=backward,
                attributes=_attributes(op, self.attributes),
                source=op,
            )
        )

    def _inline(self, op: Any, smaller: Any, few: Any, graph: Any, backward: bool) -> bool:
        """Inlines the operations of a called function; False if impossible."""
        names = {"If": ("then_branch", "else_branch"), "PartitionedCall": ("f",)}
        branches = names.get(op.type.removeprefix("Stateless").removeprefix("Stateful"))
        if branches is None:
            return False
        first = 1 if op.type.endswith("If") else 0  # behind the condition
        results = []
        for branch in branches:
            bodies = [
                _private.function_graph(g, o.get_attr(branch).name)
                for g, o in ((few, smaller), (graph, op))
            ]
            given, within = op.inputs[first:], backward or _BACKWARD in op.name
            self.read(bodies[0], bodies[1], given, within, step_parts.whole(bodies[1]))
            results.append(bodies[1].outputs)
        sources = [
            [self.number[id(r[k])] for r in results if id(r[k]) in self.number]
            for k in range(len(op.outputs))
        ]
        self._pass(op, smaller, sources, (), backward)
        return True

    def _pass(self, op: Any, smaller: Any, sources: Sequence[Sequence[int]],
              after: tuple[int, ...], backward: bool) -> None:  # fmt: skip
        """Makes each output of an operation the values that it comes from."""
        for k, (more, fewer) in enumerate(zip(op.outputs, smaller.outputs, strict=True)):
            self.number[id(more)] = len(self.values)
            self.values.append(Value(shape_of(fewer), shape_of(more), int(more.dtype.size)))
            self.made.append(
                Operation(f"{op.name}:{k}", "Identity", tuple(sources[k]), (len(self.values) - 1,),
                          after, None, backward)
            )  # fmt: skip


def _gradients(
    pairs: Sequence[Any], variables: dict[int, int], number: dict[int, int]
) -> Iterator[tuple[int, int]]:
    for source, gradient in pairs:
        held = _private.tf_variable(source)
        index = variables.get(id(getattr(held, "handle", None)))
        if isinstance(gradient, tf.IndexedSlices):
            gradient = gradient.values
        if index is not None and id(gradient) in number:
            yield index, number[id(gradient)]


def shape_of(tensor: Any) -> tuple[int, ...] | None:
    """The shape of a tensor of a graph; None if any of it is unknown."""
    return tuple(tensor.shape.as_list()) if tensor.shape.is_fully_defined() else None


def _bytes(tensor: Any) -> int:
    return int(tensor.shape.num_elements() or 0) * int(tensor.dtype.size)


def _attributes(op: Any, names: dict[str, list[str]]) -> dict[str, Any]:
    """Those of `_ATTRIBUTES` that an operation has; `names` remembers which its type has."""
    if op.type not in names:
        has = op.node_def.attr
        names[op.type] = [name for name in _ATTRIBUTES if name in has]
    found = {name: op.get_attr(name) for name in names[op.type]}
    if op.type in _AXES and op.inputs:
        known = tf.get_static_value(op.inputs[_AXES[op.type]])
        found["axes"] = None if known is None else tuple(known.ravel().tolist())
    return found
