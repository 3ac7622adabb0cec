"""Finds the parts of a step that go over three equal blocks one by one.

Compilers call this loop rerolling: the operations of the three stand side by side, equal but for
what they take, in the forward part of a step, in the backward part and in the optimizer's, in the
blocks' order or in the reverse.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tfaccel.planner.block_places import BLOCKS, Place, Places, UnevenError
from tfaccel.planner.steps import Operation, Step, Value

_PASSING = frozenset({"ReadVariableOp", "Cast", "Identity"})


@dataclass(frozen=True)
class Run:
    """Operations that go over the three blocks.

    Attributes:
        start: the first of them.
        period: how many belong to one block.
        reverse: whether the last block comes first.
    """

    start: int
    period: int
    reverse: bool


@dataclass(frozen=True)
class Rolled:
    """A step, and what of it belongs to which block.

    Attributes:
        step: of a model with three blocks.
        runs: over the blocks, in order.
        operations: the places of its operations.
        values: of its values.
        variables: of its variables.
    """

    step: Step
    runs: Sequence[Run]
    operations: Places
    values: Places
    variables: Places


def reroll(step: Step, blocks: Sequence[int | None], likes: Sequence[Hashable]) -> Rolled:
    """Finds the blocks in a step.

    Args:
        step: of a model with three blocks.
        blocks: the block of each variable, 0 to 2; None for those in none.
        likes: what variables are compared by, such as their shapes.

    Raises:
        UnevenError: when the step is not the same for each block.
    """
    tokens = [_token(op, step.values) for op in step.operations]
    labels = _labels(step, blocks)
    runs = _runs(_numbered(tokens), labels)
    of_one = [op for run in runs for op in step.operations[run.start : run.start + run.period]]
    if not any(op.backward for op in of_one):
        raise UnevenError("no part of its step goes over the blocks one by one")
    operations = Places(dict(_operation_places(runs)))
    for i, label in enumerate(labels):
        if label is not None and i not in operations:
            op = step.operations[i]
            raise UnevenError(f"operation {op.name} ({op.kind}) belongs to a block and to no run")
    values = Places(_value_places(step, operations))
    return Rolled(step, runs, operations, values, Places(_variable_places(blocks, likes)))


def _token(op: Operation, values: Sequence[Value]) -> Hashable:
    def of(numbers: Sequence[int]) -> Hashable:
        return tuple((values[v].fewer, values[v].more, values[v].width) for v in numbers)

    return op.kind, op.backward, op.variable is None, of(op.inputs), of(op.outputs)


def _numbered(tokens: Sequence[Hashable]) -> np.ndarray[Any, Any]:
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(token, len(numbers)) for token in tokens])


def _labels(step: Step, blocks: Sequence[int | None]) -> list[int | None]:
    """The block of the operations that use a variable of one, or its gradient."""
    of_value: dict[int, int] = {}
    for variable, value in step.gradients.items():
        block = blocks[variable]
        if block is not None:
            of_value[value] = block
    last_backward = max((i for i, op in enumerate(step.operations) if op.backward), default=0)
    found: list[int | None] = []
    for i, op in enumerate(step.operations):
        block = blocks[op.variable] if op.variable is not None else None
        if block is None:
            given = {of_value[v] for v in op.inputs if v in of_value}
            block = max(given) if 0 < len(given) < BLOCKS else None
        # Of the optimizer's operations, those too that use what others made of such a gradient.
        if block is not None and (op.kind in _PASSING or i > last_backward):
            for value in op.outputs:
                of_value.setdefault(value, block)
        found.append(block)
    return found


def _runs(tokens: np.ndarray[Any, Any], labels: Sequence[int | None]) -> list[Run]:
    """The longest runs of three equal parts, one a block."""
    candidates = []
    for period in range(len(tokens) // BLOCKS, 0, -1):
        same = tokens[:-period] == tokens[period:]
        edges = np.flatnonzero(np.diff(np.concatenate(([0], same.view(np.int8), [0]))))
        for begin, end in zip(edges[::2], edges[1::2], strict=True):
            if end - begin >= 2 * period:
                candidates.append((int(begin), int(end - begin) - 2 * period, period))
    chosen: list[Run] = []
    taken = np.zeros(len(tokens), bool)
    for start, spare, period in candidates:
        for begin in range(start, start + spare + 1):
            if taken[begin : begin + BLOCKS * period].any():
                continue
            windows = [
                set(labels[begin + w * period : begin + (w + 1) * period]) - {None}
                for w in range(BLOCKS)
            ]
            if windows in ([{0}, {1}, {2}], [{2}, {1}, {0}]):
                chosen.append(Run(begin, period, windows[0] == {2}))
                taken[begin : begin + BLOCKS * period] = True
    return sorted(chosen, key=lambda run: run.start)


def _operation_places(runs: Sequence[Run]) -> Iterator[tuple[int, Place]]:
    for r, run in enumerate(runs):
        for window in range(BLOCKS):
            block = 2 - window if run.reverse else window
            for p in range(run.period):
                yield run.start + window * run.period + p, Place(r, block, (p,))


def _value_places(step: Step, operations: Places) -> dict[int, Place]:
    found: dict[int, Place] = {}
    for i, op in enumerate(step.operations):
        place = operations.get(i)
        if place is not None:
            for k, value in enumerate(op.outputs):
                found[value] = replace(place, position=(*place.position, k))
    return found


def _variable_places(blocks: Sequence[int | None], likes: Sequence[Hashable]) -> dict[int, Place]:
    """Places of the variables of blocks, which are made block by block."""
    labelled = [i for i, block in enumerate(blocks) if block is not None]
    parts: list[list[int]] = []
    for i in labelled:
        last = parts[-1][-1] if parts else None
        if last is not None and blocks[last] == blocks[i] and last == i - 1:
            parts[-1].append(i)
        else:
            parts.append([i])
    found: dict[int, Place] = {}
    for r in range(0, len(parts), BLOCKS):
        three = parts[r : r + BLOCKS]
        order = [blocks[part[0]] for part in three]
        equal = len({tuple(likes[i] for i in part) for part in three}) == 1
        if order != [0, 1, 2] or not equal:
            raise UnevenError("the variables of the blocks are not made in the same order")
        for block, part in enumerate(three):
            for p, i in enumerate(part):
                found[i] = Place(r // BLOCKS, block, (p,))
    return found
