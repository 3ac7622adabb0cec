"""Traces the training step of a model on abstract shapes: forward, backward and the optimizer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import keras
import tensorflow as tf

from tfaccel.distribute import _private, gradients, rematerialization
from tfaccel.distribute.replacements import Replacements
from tfaccel.planner import batch_sizes, graph_reader, step_parts
from tfaccel.planner.abstract import AbstractStrategy
from tfaccel.planner.steps import Step
from tfaccel.target import Target

Updates: TypeAlias = "Sequence[Callable[[], AbstractContextManager[Any]]]"
"""Contexts, in each of which the optimizer updates in another way."""


@_private.without_stack_traces()
def trace(
    target: Target,
    strategy: AbstractStrategy,
    rows: tuple[int, int],
    known: Mapping[int, int] = MappingProxyType({}),
    updates: Updates = (contextlib.nullcontext,),
) -> tuple[Step, ...]:
    """Traces the step of a model for two batches, a smaller and a larger one.

    Args:
        target: a compiled model built under `strategy`.
        strategy: which variables belong to it.
        rows: of each batch.
        known: from `batch_sizes.dimensions` of a step for `rows`, of the same model in another
            precision, or with another optimizer. If it has every size that is no less than the
            batch, or a reshape makes the others of these, only the larger batch is traced.
            Without it, the smaller batch is traced up to the gradients, or up to the optimizer,
            whose operations have no sizes of their own.
        updates: ways to update; one trace serves them all where that is possible.

    Returns:
        The step of each of `updates`.
    """
    gradients.install()
    rematerialization.install()
    large = _traces(target, strategy, rows[1], updates)
    for sizes in _sizes_of_all(target, strategy, rows, known, large[0].graph):
        if not sizes:
            continue
        steps = [_read(one.graph, one, strategy, rows) for one in large]
        sizes = {**sizes, **batch_sizes.reshaped(steps[0], sizes)}
        more = {size for step in steps for size in batch_sizes.sizes_in(step)} - sizes.keys()
        # What is smaller than the batch does not grow with it, unless the forward part has it too.
        if all(size < rows[1] for size in more):
            every = {**sizes, **{size: size for size in more}}
            return tuple(batch_sizes.with_fewer(step, every) for step in steps)
    # Of few rows TensorFlow makes some zeros as constants, which it fills in for more.
    for few in (rows[0], max(1, rows[1] // 2)):
        small = _traces(target, strategy, few, updates)
        if all(map(_are_alike, small, large)):
            break
    return tuple(
        _of_two(fewer, more, strategy, (few, rows[1]))
        for fewer, more in zip(small, large, strict=True)
    )


@dataclass(frozen=True)
class _Traced:
    """What a trace has found.

    Attributes:
        graph: of the step.
        pairs: of variables and gradients.
        part: the operations of the graph that a step of one update consists of.
    """

    graph: Any
    pairs: Sequence[Any]
    part: step_parts.Part


def _traces(
    target: Target, strategy: AbstractStrategy, rows: int, updates: Updates
) -> list[_Traced]:
    """One for each update, of one graph where all of them can be in it."""
    if len(updates) > 1:
        with contextlib.suppress(Exception):  # what it is, a trace of one update alone shows
            graph, pairs, ends = _graph(target, strategy, rows, updates)
            if len(ends) == len(updates) + 1:  # the optimizer is applied once
                found = step_parts.parts(graph, ends)
                if found is not None:
                    return [_Traced(graph, pairs, part) for part in found]
    traced = []
    for update in updates:
        graph, pairs, _ = _graph(target, strategy, rows, [update])
        traced.append(_Traced(graph, pairs, step_parts.whole(graph)))
    return traced


def _of_two(fewer: _Traced, more: _Traced, strategy: AbstractStrategy, rows: Any) -> Step:
    """The step that was traced for both batches."""
    if not _are_alike(fewer, more):  # a step that depends on the number of rows
        return _read(more.graph, more, strategy, (rows[1], rows[1]))
    return _read(fewer.graph, more, strategy, rows)


def _are_alike(fewer: _Traced, more: _Traced) -> bool:
    """Whether two traces have the same operations."""
    kinds = [[op.type for op in one.graph.get_operations()] for one in (fewer, more)]
    return kinds[0] == kinds[1]


class _Reached(Exception):  # noqa: N818
    """Ends a trace early."""


_GRADIENT = ((tf.GradientTape, "gradient"),)
_UPDATE = ((keras.optimizers.Optimizer, "apply"), (keras.optimizers.LossScaleOptimizer, "apply"))


def _sizes_of_all(
    target: Target,
    strategy: AbstractStrategy,
    rows: tuple[int, int],
    known: Mapping[int, int],
    graph: Any,
) -> Iterator[Mapping[int, int]]:
    """Each size of the larger batch with that of the smaller one: as known, else as traced."""
    if known:
        yield known
        return
    few = _until(_GRADIENT, target, strategy, rows[0])
    sizes = batch_sizes.of_graphs(few, graph)
    # A constant that is a multiple of the rows may be one of the backward part's own sizes too.
    if all(fewer != more for more, fewer in sizes.items() if more and more % rows[1] == 0):
        yield sizes
    yield batch_sizes.of_graphs(_until(_UPDATE, target, strategy, rows[0]), graph)


def _until(
    ends: Sequence[tuple[Any, str]], target: Target, strategy: AbstractStrategy, rows: int
) -> Any:
    """The graph of a step up to a call of one of `ends`; None if the step catches its end."""
    found: list[Any] = []

    def end(*args: Any, **kwargs: Any) -> None:
        found.append(tf.compat.v1.get_default_graph())
        raise _Reached

    with Replacements() as replacements, contextlib.suppress(_Reached):
        for owner, name in ends:
            replacements.replace(owner, name, end)
        return _graph(target, strategy, rows, [contextlib.nullcontext])[0]
    return found[-1] if len(found) == 1 else None


_Graph: TypeAlias = tuple[Any, list[Any], list[int]]


def _graph(target: Target, strategy: AbstractStrategy, rows: int, updates: Updates) -> _Graph:
    """The graph of a step, pairs of variables and gradients, and where its updates end."""
    x, y = target.batch(rows)
    if target.model.loss is None:
        with contextlib.suppress(TypeError, ValueError, tf.errors.OperatorNotAllowedInGraphError):
            return _traced(target.model, strategy, x, updates)
    return _traced(target.model, strategy, (x, y), updates)


def _traced(model: keras.Model, strategy: AbstractStrategy, data: Any, updates: Updates) -> _Graph:
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

    with strategy.scope(), _updating(updates) as ends:
        concrete = tf.function(step, autograph=False).get_concrete_function(*flat)
    pairs = [pair for sources, grads in taken for pair in zip(sources, grads, strict=True)]
    inside = all(graph is concrete.graph for graph, _ in ends)
    return concrete.graph, pairs, [number for _, number in ends] if inside else []


@contextlib.contextmanager
def _updating(updates: Updates) -> Iterator[list[tuple[Any, int]]]:
    """Inside, an optimizer updates in each of these ways.

    Yields:
        Of each call, the graph and how many operations it has before the first and after each.
    """
    ends: list[tuple[Any, int]] = []
    inside = [False]

    def end() -> None:
        graph = tf.compat.v1.get_default_graph()
        ends.append((graph, len(graph.get_operations())))

    def each(original: Callable[..., Any]) -> Callable[..., Any]:
        def apply(*args: Any, **kwargs: Any) -> Any:
            if inside[0]:  # called by the optimizer that scales its loss
                return original(*args, **kwargs)
            args = tuple(list(one) if isinstance(one, Iterator) else one for one in args)
            inside[0] = True
            try:
                end()
                for update in updates:
                    with update():
                        result = original(*args, **kwargs)
                    end()
            finally:
                inside[0] = False
            return result

        return apply

    with Replacements() as replacements:
        for owner, name in _UPDATE:
            replacements.replace(owner, name, each(getattr(owner, name)))
        yield ends


def _read(few: Any, more: _Traced, strategy: AbstractStrategy, rows: tuple[int, int]) -> Step:
    return graph_reader.read(few, more.graph, more.part, more.pairs, strategy, rows)
