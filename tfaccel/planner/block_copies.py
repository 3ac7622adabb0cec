"""Copies what a step does for the middle one of three blocks.

What a block takes from its neighbour a copy takes from its own; what all blocks take is taken by
the copies too; what collects the results of all blocks (a sum of the norms of all gradients)
collects those of the copies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from tfaccel.planner.block_indices import BlockIndices
from tfaccel.planner.block_places import BLOCKS, Place, UnevenError
from tfaccel.planner.reroll import Rolled
from tfaccel.planner.steps import Operation, Step, Value

Role: TypeAlias = tuple[int, str, int]
"""An operation of the short step, and which of its copies: counted from the first or the last."""

Copy: TypeAlias = tuple[int, int | None]
"""An operation, a value or a variable of the short step, and the index of the block of this copy;
None outside of all blocks."""


@dataclass(frozen=True)
class Extended:
    """A step with more blocks.

    Attributes:
        step: of all of them; its variables are indices into what `Extension.variables` lists.
        roles: what each operation is a copy of.
    """

    step: Step
    roles: tuple[tuple[Role, ...], ...]


class BlockCopies:
    """The operations and values of a model with `count` blocks.

    Args:
        rolled: the step of one with three.
        variables: of the longer model, in the order in which it makes them.
        count: of blocks, three or more.
        ends: how many copies at either end have a role of their own.

    Raises:
        UnevenError: here and in `extended`, when the three blocks do not determine the inputs of a
            copy.
        KeyError: the same, when something of a block has no counterpart in another.
    """

    def __init__(self, rolled: Rolled, variables: Sequence[Copy], count: int, ends: int) -> None:
        self._rolled, self._step, self._ends = rolled, rolled.step, ends
        self._indices = BlockIndices(count)
        self._emitted = list(self._emissions())
        self._new_op = {copy: number for number, copy in enumerate(self._emitted)}
        results = (one for i, index in self._emitted for one in self._results(i, index))
        self._new_value = {copy: number for number, copy in enumerate(results)}
        self._new_variable = {copy: number for number, copy in enumerate(variables)}

    def extended(self) -> Extended:
        """The step made of them."""
        step = self._step
        values: list[Value] = []
        operations = []
        for i, index in self._emitted:
            op = step.operations[i]
            inputs = self._inputs(i, index, op)
            results = self._results(i, index)
            outputs = tuple(self._new_value[copy] for copy in results)
            joined = len(inputs) - len(op.inputs)
            values += [_joined(op, step.values[v], joined, index) for v, _ in results]
            operations.append(
                Operation(
                    op.name,
                    op.kind,
                    inputs,
                    outputs,
                    self._after(i, index, op),
                    self._variable(i, index, op.variable),
                    op.backward,
                    op.attributes,
                    op.source,
                )
            )
        gradients = dict(self._gradients())
        captured = {
            self._new_value[value, index]: size
            for value, size in step.captured.items()
            for index in self._copies_of(value)
        }
        made = replace(
            step,
            values=tuple(values),
            operations=tuple(operations),
            arguments=tuple(self._outer(v) for v in step.arguments),
            results=tuple(self._outer(v) for v in step.results),
            gradients=gradients,
            captured=captured,
            constants=step.constants + sum(captured.values()) - sum(step.captured.values()),
        )
        roles = tuple(tuple(self._roles(i, index)) for i, index in self._emitted)
        return Extended(made, roles)

    # --- Which copies there are ---

    def _emissions(self) -> Iterator[Copy]:
        i = 0
        runs = {run.start: run for run in self._rolled.runs}
        while i < len(self._step.operations):
            run = runs.get(i)
            if run is None:
                yield i, None
                i += 1
                continue
            indices = range(self._indices.count)
            for index in reversed(indices) if run.reverse else indices:
                block = self._indices.like(index)
                window = 2 - block if run.reverse else block
                for p in range(run.period):
                    yield i + window * run.period + p, index
            i += BLOCKS * run.period

    def _results(self, i: int, index: int | None) -> list[Copy]:
        """The values that an operation makes."""
        return [(value, index) for value in self._step.operations[i].outputs]

    def _roles(self, i: int, index: int | None) -> Iterator[Role]:
        if index is None or self._indices.like(index) != 1:
            yield i, "", 0
            return
        if index <= self._ends:
            yield i, "first", index
        if self._indices.last - index <= self._ends:
            yield i, "last", self._indices.last - index

    def _copies_of(self, value: int) -> Sequence[int | None]:
        source = self._source(value)
        return [None] if source is None else self._indices.copies(source.block)

    # --- What a copy takes ---

    def _inputs(self, i: int, index: int | None, op: Operation) -> tuple[int, ...]:
        if index is None:
            return tuple(self._value(op.inputs[k], at) for k, at in self._collected(op))
        operations = self._rolled.operations
        block = operations[i].block
        siblings = [self._step.operations[operations.counterpart(i, b)] for b in range(BLOCKS)]
        found = []
        for k, value in enumerate(op.inputs):
            slot = [self._source(one.inputs[k]) for one in siblings]
            if slot[1] is None and siblings[1].inputs[k] != siblings[2].inputs[k]:
                raise UnevenError(f"{op.name} takes other values in each block")
            taken = self._indices.taken(block, index, self._source(value), slot)
            found.append(self._value(value, taken))
        return tuple(found)

    def _collected(self, op: Operation) -> Iterator[Copy]:
        return self._indices.collected([self._source(v) for v in op.inputs], op.name)

    def _after(self, i: int, index: int | None, op: Operation) -> tuple[int, ...]:
        places = self._rolled.operations
        found: list[int] = []
        for j in op.after:
            place = places.get(j)
            if place is None:
                found.append(self._new_op[j, None])
            elif index is None:
                found += [self._operation(j, at) for at in self._indices.copies(place.block)]
            else:
                block = places[i].block
                at = index + place.block - block
                if block != 1 and abs(place.block - block) == 2:
                    at = self._indices.end(place.block)
                found.append(self._operation(j, at))
        return tuple(found)

    def _variable(self, i: int, index: int | None, variable: int | None) -> int | None:
        if variable is None:
            return None
        places = self._rolled.variables
        place = places.get(variable)
        if place is None:
            return self._new_variable[variable, None]
        assert index is not None
        at = index + place.block - self._rolled.operations[i].block
        return self._new_variable[places.counterpart(variable, self._indices.like(at)), at]

    def _gradients(self) -> Iterator[tuple[int, int]]:
        for variable, value in self._step.gradients.items():
            place, source = self._rolled.variables.get(variable), self._source(value)
            if place is None:
                yield self._new_variable[variable, None], self._outer(value)
                continue
            if source is None:
                raise UnevenError("the gradient of a block's weight is made outside of all runs")
            ahead = source.block - place.block
            for index in self._indices.copies(place.block):
                yield self._new_variable[variable, index], self._value(value, index + ahead)

    def _outer(self, value: int) -> int:
        source = self._source(value)
        if source is None:
            return self._new_value[value, None]
        if source.block == 1:
            raise UnevenError("a result of the step is that of the middle block")
        return self._value(value, self._indices.end(source.block))

    # --- The new numbers of copies ---

    def _source(self, value: int) -> Place | None:
        return self._rolled.values.get(value)

    def _value(self, value: int, index: int | None) -> int:
        """The new number of a value at an index: of its counterpart there."""
        if index is None:
            return self._new_value[value, None]
        block = self._indices.like(index)
        return self._new_value[self._rolled.values.counterpart(value, block), index]

    def _operation(self, i: int, index: int) -> int:
        """The same of an operation."""
        block = self._indices.like(index)
        return self._new_op[self._rolled.operations.counterpart(i, block), index]


def _joined(op: Operation, value: Value, more: int, index: int | None) -> Value:
    """The result of an operation that takes `more` operands than in the short step."""
    if not more or op.kind in ("AddN", "NoOp"):
        return value
    if op.kind != "Pack" or index is not None:
        raise UnevenError(f"{op.name} ({op.kind}) takes something of every block")
    axis = int(op.attributes.get("axis", 0))

    def longer(shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if shape is None:
            return None
        at = axis % len(shape)
        return (*shape[:at], shape[at] + more, *shape[at + 1 :])

    return Value(longer(value.fewer), longer(value.more), value.width)
