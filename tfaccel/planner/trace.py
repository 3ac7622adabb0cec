"""Traces the training step of a model on abstract shapes: forward, backward and the optimizer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import keras
import tensorflow as tf

from tfaccel.distribute import _private, gradients
from tfaccel.distribute.replacements import Replacements
from tfaccel.planner.abstract import AbstractStrategy
from tfaccel.planner.steps import Operation, Step, Value
from tfaccel.target import Target

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


def trace(
    target: Target,
    strategy: AbstractStrategy,
    rows: tuple[int, int],
    known: Mapping[int, int] = MappingProxyType({}),
) -> Step:
    """Traces the step of a model for two batches, a smaller and a larger one.

    Args:
        target: a compiled model built under `strategy`.
        strategy: which variables belong to it.
        rows: of each batch.
        known: from `dimensions` of the same model in another precision, or with another optimizer.
            If it has every size, only the larger batch is traced. Without it, the smaller batch
            is traced up to the optimizer, whose operations have no sizes of their own.
    """
    graph, pairs = _graph(target, strategy, rows[1])
    known = known or _sizes(_before_update(target, strategy, rows[0]), graph)
    if known:
        step = _step([graph, graph], pairs, strategy, rows)
        shapes = [value.more for value in step.values]
        if all(size in known for shape in shapes if shape is not None for size in shape):
            fewer = [None if s is None else tuple(known[size] for size in s) for s in shapes]
            values = zip(step.values, fewer, strict=True)
            return replace(step, values=tuple(Value(shape, v.more, v.width) for v, shape in values))
    graphs = [_graph(target, strategy, rows[0]), (graph, pairs)]
    kinds = [[op.type for op in graph.get_operations()] for graph, _ in graphs]
    if kinds[0] != kinds[1]:  # a step that depends on the number of rows
        graphs, rows = graphs[1:] * 2, (rows[1], rows[1])
    return _step([graph for graph, _ in graphs], graphs[1][1], strategy, rows)


def dimensions(step: Step) -> dict[int, int]:
    """Each size of the larger batch with that of the smaller one; empty if one has two.

    >>> dimensions(Step((2, 7), (Value((2, 5), (7, 5), 4),), (), (), (), {}, 0, ""))
    {7: 2, 5: 5}
    >>> dimensions(Step((2, 5), (Value((2, 5), (5, 5), 4),), (), (), (), {}, 0, ""))
    {}
    """
    found: dict[int, int] = {}
    for value in step.values:
        for more, fewer in zip(value.more or (), value.fewer or (), strict=True):
            if found.setdefault(more, fewer) != fewer:
                return {}
    return found


class _UpdateReached(Exception):  # noqa: N818
    """Ends a trace where the optimizer begins."""


def _before_update(target: Target, strategy: AbstractStrategy, rows: int) -> Any:
    """The graph of a step without its update; None if the step catches the end of its trace."""
    found: list[Any] = []

    def apply(*args: Any, **kwargs: Any) -> None:
        found.append(tf.compat.v1.get_default_graph())
        raise _UpdateReached

    with Replacements() as replacements, contextlib.suppress(_UpdateReached):
        for owner in (keras.optimizers.Optimizer, keras.optimizers.LossScaleOptimizer):
            replacements.replace(owner, "apply", apply)
        return _graph(target, strategy, rows)[0]
    return found[-1] if len(found) == 1 else None


def _sizes(few: Any, graph: Any) -> dict[int, int]:
    """`dimensions` from graphs of which that of the smaller batch may end earlier."""
    if few is None:
        return {}
    begun = graph.get_operations()
    found: dict[int, int] = {}
    for k, op in enumerate(few.get_operations()):
        if k >= len(begun) or begun[k].type != op.type:
            return {}
        for more, fewer in zip(begun[k].outputs, op.outputs, strict=True):
            for a, b in zip(_shape(more) or (), _shape(fewer) or (), strict=True):
                if found.setdefault(a, b) != b:
                    return {}
    return found


def _graph(target: Target, strategy: AbstractStrategy, rows: int) -> tuple[Any, list[Any]]:
    """The graph of a step, and pairs of variables and gradients."""
    x, y = target.batch(rows)
    if target.model.loss is None:
        with contextlib.suppress(TypeError, ValueError, tf.errors.OperatorNotAllowedInGraphError):
            return _traced(target.model, strategy, x)
    return _traced(target.model, strategy, (x, y))


def _traced(model: keras.Model, strategy: AbstractStrategy, data: Any) -> tuple[Any, list[Any]]:
    flat = tf.nest.flatten(data)
    taken: list[Any] = []

    def step(*parts: tf.Tensor) -> Any:
        batch = tf.nest.pack_sequence_as(data, parts)
        batch = batch if isinstance(data, tuple) else (batch,)
        # Of the optimizer's branches the one that updates takes most.
        with gradients.recorded() as seen, _private.updates_unconditional():
            logs = strategy.run(model.train_step, (batch,))
        taken[:] = seen
        return tf.nest.map_structure(tf.convert_to_tensor, logs)

    gradients.install()
    with strategy.scope():
        concrete = tf.function(step, autograph=False).get_concrete_function(*flat)
    pairs = [pair for sources, grads in taken for pair in zip(sources, grads, strict=True)]
    return concrete.graph, pairs


def _step(graphs: list[Any], pairs: list[Any], strategy: AbstractStrategy, rows: Any) -> Step:
    few, graph = graphs
    reader = _Reader(strategy)
    captured = {id(inside) for _, inside in graph.captures}
    reader.constants = sum(_bytes(out) for out, _ in graph.captures if out.dtype != tf.resource)
    for outside, inside in graph.captures:
        if id(outside) in reader.variables:
            reader.handles[id(inside)] = reader.variables[id(outside)]
    reader.read(few, graph, None, False)
    number = reader.number
    return Step(
        rows=rows,
        values=tuple(reader.values),
        operations=tuple(reader.made),
        arguments=tuple(number[id(t)] for t in graph.inputs if id(t) not in captured),
        results=tuple(number[id(t)] for t in graph.outputs if id(t) in number),
        gradients=dict(_gradients(pairs, reader.variables, number)),
        constants=reader.constants,
        captured={number[id(inside)]: _bytes(out) for out, inside in graph.captures
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

    def read(self, few: Any, graph: Any, inputs: Any, backward: bool) -> None:
        """Reads a graph.

        Args:
            few: that of the smaller batch.
            graph: that of the larger one.
            inputs: a function's inputs in the calling graph; None for the step.
            backward: whether that graph calls it for a gradient.
        """
        kept = _reached(graph)
        given = {} if inputs is None else {
            id(inside): outside for inside, outside in zip(graph.inputs, inputs, strict=True)
        }  # fmt: skip
        ends: dict[str, tuple[int, ...]] = {}  # what stands for an operation that others wait for
        for op, smaller in zip(graph.get_operations(), few.get_operations(), strict=True):
            if id(op) not in kept:
                continue
            outside = given.get(id(op.outputs[0])) if op.outputs else None
            if outside is not None:
                self._is(op.outputs[0], outside)
                ends[op.name] = ()
                continue
            after = tuple(i for o in op.control_inputs for i in ends.get(o.name, ()))
            begun = len(self.made)
            if _private.only_calls(op.type) and self._inline(op, smaller, few, graph, backward):
                ends[op.name] = tuple(range(begun, len(self.made)))
            else:
                self._add(op, smaller, after, backward or _BACKWARD in op.name)
                ends[op.name] = (begun,)

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
            shapes = _shape(fewer), _shape(more)
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
            self.read(bodies[0], bodies[1], op.inputs[first:], backward or _BACKWARD in op.name)
            results.append(bodies[1].outputs)
        for k, (more, fewer) in enumerate(zip(op.outputs, smaller.outputs, strict=True)):
            self.number[id(more)] = len(self.values)
            self.values.append(Value(_shape(fewer), _shape(more), int(more.dtype.size)))
            sources = [self.number[id(r[k])] for r in results if id(r[k]) in self.number]
            self.made.append(
                Operation(f"{op.name}:{k}", "Identity", tuple(sources), (len(self.values) - 1,),
                          (), None, backward)
            )  # fmt: skip
        return True


def _gradients(
    pairs: list[Any], variables: dict[int, int], number: dict[int, int]
) -> Iterator[tuple[int, int]]:
    for source, gradient in pairs:
        held = _private.tf_variable(source)
        index = variables.get(id(getattr(held, "handle", None)))
        if isinstance(gradient, tf.IndexedSlices):
            gradient = gradient.values
        if index is not None and id(gradient) in number:
            yield index, number[id(gradient)]


def _reached(graph: Any) -> set[int]:
    """The operations that run: those needed for results and side effects."""
    found: set[int] = set()
    open_ = [t.op for t in graph.outputs] + list(graph.control_outputs)
    while open_:
        op = open_.pop()
        if id(op) not in found:
            found.add(id(op))
            open_ += [t.op for t in op.inputs] + list(op.control_inputs)
    return found


def _shape(tensor: Any) -> tuple[int, ...] | None:
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
