"""The sizes of a step for a large batch, each with that of the same step for a small one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tfaccel.planner.graph_reader import shape_of
from tfaccel.planner.steps import Step, Value


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


def sizes_in(step: Step) -> set[int]:
    """The sizes of a step for the larger batch."""
    shapes = {value.more for value in step.values}
    return {size for shape in shapes if shape is not None for size in shape}


def reshaped(step: Step, sizes: Mapping[int, int]) -> dict[int, int]:
    """Sizes that reshapes make of known ones, such as a flat one, with those of the smaller batch.

    >>> from tfaccel.planner.steps import Operation
    >>> values = (Value((7, 5), (7, 5), 4), Value((35,), (35,), 4))
    >>> reshape = Operation("flat", "Reshape", (0,), (1,), (), None, False)
    >>> reshaped(Step((2, 7), values, (reshape,), (), (), {}, 0, ""), {7: 2, 5: 5})
    {35: 10}
    """
    found: dict[int, int] = {}
    for op in step.operations:
        if op.kind != "Reshape":
            continue
        given, made = step.values[op.inputs[0]].more, step.values[op.outputs[0]].more
        new = {*(made or ())} - sizes.keys()
        if given is None or made is None or len(new) != 1 or not sizes.keys() >= {*given}:
            continue
        size = new.pop()
        others = math.prod(sizes[n] for n in made if n != size)
        if made.count(size) > 1 or not others:
            return {}
        fewer, rest = divmod(math.prod(sizes[n] for n in given), others)
        if rest or found.setdefault(size, fewer) != fewer:
            return {}
    return found


def with_fewer(step: Step, sizes: Mapping[int, int]) -> Step:
    """A step that was traced for the larger batch alone, with the shapes of the smaller one."""
    values = tuple(
        Value(None if v.more is None else tuple(sizes[n] for n in v.more), v.more, v.width)
        for v in step.values
    )
    return replace(step, values=values)


def of_graphs(few: Any, graph: Any) -> dict[int, int]:
    """`dimensions` from graphs of which that of the smaller batch may end earlier."""
    if few is None:
        return {}
    begun = graph.get_operations()
    found: dict[int, int] = {}
    for k, op in enumerate(few.get_operations()):
        # A loop has more results where a gradient is taken of it.
        if k >= len(begun) or begun[k].type != op.type or len(begun[k].outputs) != len(op.outputs):
            return {}
        for more, fewer in zip(begun[k].outputs, op.outputs, strict=True):
            larger, smaller = shape_of(more) or (), shape_of(fewer) or ()
            if len(larger) != len(smaller):  # another operation, of the same type
                return {}
            for a, b in zip(larger, smaller, strict=True):
                if found.setdefault(a, b) != b:
                    return {}
    return found
