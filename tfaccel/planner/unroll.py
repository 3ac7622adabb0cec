"""Extends the step of a model with three equal blocks to any number of blocks.

In the list of operations each part of a step, forward, backward and the optimizer's, goes over the
blocks in their order or in the reverse: the operations of the three are side by side, equal except
for their inputs. The middle one is copied. Inputs from a neighbouring block come from the copy's
own neighbour; inputs common to all blocks are used by the copies too; operations that collect the
results of all blocks (a sum of the norms of all gradients) also collect those of the copies. A step
that does not have this form raises `UnevenError`, and must be traced with all its blocks.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tfaccel.planner.steps import Operation, Step, Value

_BLOCKS = 3


class UnevenError(Exception):
    """Why a step cannot be extended."""


@dataclass(frozen=True)
class Place:
    """A position among the blocks.

    Attributes:
        run: which of the runs over all blocks.
        block: 0 to 2.
        position: in the block, and for a value which of an operation's results.
    """

    run: int
    block: int
    position: tuple[int, ...]


Role = tuple[int, str, int]
"""An operation of the short step, and which of its copies: counted from the first or the last."""


@dataclass(frozen=True)
class Extended:
    """A step with more blocks.

    Attributes:
        step: of all of them; its variables are indices into what `Extension.variables` lists.
        roles: the original of each operation.
    """

    step: Step
    roles: tuple[tuple[Role, ...], ...]


class Extension:
    """Extends a step.

    Args:
        step: of a model with three blocks.
        blocks: the block of each variable, 0 to 2; None for those in none.
        likes: the key to compare variables by, such as their shapes.

    Raises:
        UnevenError: when the step is not the same for each block.
    """

    def __init__(self, step: Step, blocks: Sequence[int | None], likes: Sequence[Hashable]) -> None:
        self._step = step
        self._blocks = blocks
        tokens = [_token(op, step.values) for op in step.operations]
        labels = _labels(step, blocks)
        self._runs = _runs(_numbered(tokens), labels)
        if not any(step.operations[run.start].backward for run in self._runs):
            raise UnevenError("no part of its step goes over the blocks one by one")
        self._at: dict[int, Place] = {}
        self._by_place: dict[Place, int] = {}
        for r, run in enumerate(self._runs):
            for window in range(_BLOCKS):
                block = 2 - window if run.reverse else window
                for p in range(run.period):
                    i = run.start + window * run.period + p
                    self._at[i] = Place(r, block, (p,))
        self._by_place = {place: i for i, place in self._at.items()}
        for i, label in enumerate(labels):
            if label is not None and i not in self._at:
                op = step.operations[i]
                raise UnevenError(
                    f"operation {op.name} ({op.kind}) belongs to a block and to no run"
                )
        self._value_at = dict(self._value_places())
        self._value_by_place = {place: value for value, place in self._value_at.items()}
        self._variables = _variable_runs(blocks, likes)
        self._variable_at = {place: i for i, place in self._variables.items()}

    def _value_places(self) -> Iterator[tuple[int, Place]]:
        found: dict[int, Place] = {}
        for i, op in enumerate(self._step.operations):
            place = self._at.get(i)
            for k, value in enumerate(op.outputs):
                if place is not None:
                    found[value] = replace(place, position=(*place.position, k))
                elif op.kind == _EACH and op.inputs[k] in found:
                    given = found[op.inputs[k]]
                    position = (given.run, *given.position)
                    found[value] = Place(len(self._runs) + i, given.block, position)
        yield from found.items()

    def variables(self, count: int) -> list[tuple[int, int | None]]:
        """For each variable of a model with `count` blocks, its original and its block.

        They are in that model's creation order.
        """
        made: list[tuple[int, int | None]] = []
        i = 0
        while i < len(self._blocks):
            place = self._variables.get(i)
            if place is None:
                made.append((i, None))
                i += 1
                continue
            size = sum(p.run == place.run for p in self._variables.values()) // _BLOCKS
            for index in range(count):
                for p in range(size):
                    at = Place(place.run, block_like(index, count), (p,))
                    made.append((self._variable_at[at], index))
            i += _BLOCKS * size
        return made

    def to(self, count: int, ends: int = 1) -> Extended:
        """The step of a model with `count` blocks, three or more.

        Args:
            count: of blocks.
            ends: how many copies at either end have their own role.
        """
        try:
            return _Copies(self, count, ends).made()
        except KeyError as error:
            raise UnevenError("something of a block has no counterpart in the others") from error


@dataclass(frozen=True)
class _Run:
    start: int
    period: int
    reverse: bool


def _token(op: Operation, values: Sequence[Value]) -> Hashable:
    def of(numbers: Sequence[int]) -> Hashable:
        return tuple((values[v].fewer, values[v].more, values[v].width) for v in numbers)

    return op.kind, op.backward, op.variable is None, of(op.inputs), of(op.outputs)


def _numbered(tokens: Sequence[Hashable]) -> np.ndarray[Any, Any]:
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(token, len(numbers)) for token in tokens])


# Returns each of its operands, and waits for all of them.
_EACH = "IdentityN"
_PASSING = frozenset({"ReadVariableOp", "Cast", "Identity"})


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
            block = max(given) if 0 < len(given) < _BLOCKS else None
        # Also the optimizer's operations that use results derived from such a gradient.
        if block is not None and (op.kind in _PASSING or i > last_backward):
            for value in op.outputs:
                of_value.setdefault(value, block)
        if op.kind == _EACH:
            for given_value, value in zip(op.inputs, op.outputs, strict=True):
                if given_value in of_value:
                    of_value.setdefault(value, of_value[given_value])
            if op.variable is None and len({of_value.get(v) for v in op.inputs}) > 1:
                block = None
        found.append(block)
    return found


def _runs(tokens: np.ndarray[Any, Any], labels: Sequence[int | None]) -> list[_Run]:
    """The longest runs of three equal parts, one per block."""
    candidates = []
    for period in range(len(tokens) // _BLOCKS, 0, -1):
        same = tokens[:-period] == tokens[period:]
        edges = np.flatnonzero(np.diff(np.concatenate(([0], same.view(np.int8), [0]))))
        for begin, end in zip(edges[::2], edges[1::2], strict=True):
            if end - begin >= 2 * period:
                candidates.append((int(begin), int(end - begin) - 2 * period, period))
    chosen: list[_Run] = []
    taken = np.zeros(len(tokens), bool)
    for start, spare, period in candidates:
        for begin in range(start, start + spare + 1):
            if taken[begin : begin + _BLOCKS * period].any():
                continue
            windows = [
                set(labels[begin + w * period : begin + (w + 1) * period]) - {None}
                for w in range(_BLOCKS)
            ]
            if windows in ([{0}, {1}, {2}], [{2}, {1}, {0}]):
                chosen.append(_Run(begin, period, windows[0] == {2}))
                taken[begin : begin + _BLOCKS * period] = True
    return sorted(chosen, key=lambda run: run.start)


def _variable_runs(blocks: Sequence[int | None], likes: Sequence[Hashable]) -> dict[int, Place]:
    """Positions of the variables of blocks, which are created block by block."""
    labelled = [i for i, block in enumerate(blocks) if block is not None]
    parts: list[list[int]] = []
    for i in labelled:
        last = parts[-1][-1] if parts else None
        if last is not None and blocks[last] == blocks[i] and last == i - 1:
            parts[-1].append(i)
        else:
            parts.append([i])
    found: dict[int, Place] = {}
    for r in range(0, len(parts), _BLOCKS):
        three = parts[r : r + _BLOCKS]
        order = [blocks[part[0]] for part in three]
        equal = len({tuple(likes[i] for i in part) for part in three}) == 1
        if order != [0, 1, 2] or not equal:
            raise UnevenError("the variables of the blocks are not made in the same order")
        for block, part in enumerate(three):
            for p, i in enumerate(part):
                found[i] = Place(r // _BLOCKS, block, (p,))
    return found


class _Copies:
    """The step of a model with `count` blocks."""

    def __init__(self, of: Extension, count: int, ends: int) -> None:
        self._of, self._step, self._count, self._ends = of, of._step, count, ends
        self._new_op: dict[tuple[int, int | None], int] = {}
        self._new_value: dict[tuple[int, int | None], int] = {}
        self._emitted = list(self._emissions())
        values = 0
        for number, (i, index) in enumerate(self._emitted):
            self._new_op[i, index] = number
            for key in self._results(i, index):
                self._new_value[key] = values
                values += 1
        self._made = of.variables(count)
        self._new_variable = {key: number for number, key in enumerate(self._made)}

    def made(self) -> Extended:
        step = self._step
        values: list[Value] = []
        operations = []
        for i, index in self._emitted:
            op = step.operations[i]
            inputs = self._inputs(i, index, op)
            results = self._results(i, index)
            outputs = tuple(self._new_value[key] for key in results)
            joined = len(inputs) - len(op.inputs) if op.kind != _EACH else 0
            values += [_joined(op, step.values[v], joined, index) for v, _ in results]
            operations.append(
                replace(
                    op,
                    inputs=inputs,
                    outputs=outputs,
                    after=self._after(i, index, op),
                    variable=self._variable(i, index, op.variable),
                )
            )
        gradients = dict(self._gradients())
        captured = {
            self._new_value[value, index]: size
            for value, size in step.captured.items()
            for index in self._indices(value)
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

    def _emissions(self) -> Iterator[tuple[int, int | None]]:
        of, i = self._of, 0
        runs = {run.start: run for run in of._runs}
        while i < len(self._step.operations):
            run = runs.get(i)
            if run is None:
                yield i, None
                i += 1
                continue
            indices = range(self._count)
            for index in reversed(indices) if run.reverse else indices:
                block = self._block(index)
                window = 2 - block if run.reverse else block
                for p in range(run.period):
                    yield i + window * run.period + p, index
            i += _BLOCKS * run.period

    def _block(self, index: int) -> int:
        return block_like(index, self._count)

    def _roles(self, i: int, index: int | None) -> Iterator[Role]:
        if index is None or self._block(index) != 1:
            yield i, "", 0
            return
        if index <= self._ends:
            yield i, "first", index
        if self._count - 1 - index <= self._ends:
            yield i, "last", self._count - 1 - index

    # --- What a copy takes ---

    def _index(
        self, block: int, index: int | None, given: Place | None, slot: Sequence[Place | None]
    ) -> int | None:
        """The index of the input from `given`, for an operation of `block` at `index`.

        Args:
            block: of the short step, that takes it.
            index: of that in the new one.
            given: what is taken there; None outside of all runs.
            slot: what each of the three blocks takes at this place.
        """
        if given is None:
            if block == 1 and slot[2] is not None:
                raise UnevenError("a block takes what no other takes")
            return None
        assert index is not None
        last = self._count - 1
        if block == 0:
            return (0, 1, last)[given.block]
        if block == 2:
            return (0, last - 1, last)[given.block]
        following, before = slot[2], slot[0]
        if given.block == 1:
            if following is None or following.block != 2:
                raise UnevenError("all blocks take the same of one of them")
            return index
        if given.block == 0:
            if following is None or following.block == 2:
                raise UnevenError("a block takes of its neighbour what the next does not")
            return index - 1 if following.block == 1 else 0
        if before is None or before.block == 0:
            raise UnevenError("a block takes of its neighbour what the one before does not")
        return index + 1 if before.block == 1 else last

    def _source(self, value: int) -> Place | None:
        return self._of._value_at.get(value)

    def _results(self, i: int, index: int | None) -> list[tuple[int, int | None]]:
        """The results of an operation, each with its block in the new step."""
        op = self._step.operations[i]
        if op.kind == _EACH and index is None:
            sources = [self._source(v) for v in op.inputs]
            return [(op.outputs[k], at) for k, at in self._collected(sources, op.name)]
        return [(value, index) for value in op.outputs]

    def _value(self, value: int, index: int | None) -> int:
        """The new number of a value at an index: of its counterpart there."""
        if index is None:
            return self._new_value[value, None]
        place = self._of._value_at[value]
        mine = self._of._value_by_place[replace(place, block=self._block(index))]
        return self._new_value[mine, index]

    def _counterpart(self, i: int, index: int) -> int:
        place = self._of._at[i]
        return self._of._by_place[replace(place, block=self._block(index))]

    def _siblings(self, i: int) -> list[Operation]:
        place = self._of._at[i]
        return [
            self._step.operations[self._of._by_place[replace(place, block=b)]]
            for b in range(_BLOCKS)
        ]

    def _inputs(self, i: int, index: int | None, op: Operation) -> tuple[int, ...]:
        if index is None:
            sources = [self._source(v) for v in op.inputs]
            return tuple(
                self._value(op.inputs[k], at) for k, at in self._collected(sources, op.name)
            )
        block = self._of._at[i].block
        siblings = self._siblings(i)
        found = []
        for k, value in enumerate(op.inputs):
            slot = [self._source(one.inputs[k]) for one in siblings]
            if slot[1] is None and siblings[1].inputs[k] != siblings[2].inputs[k]:
                raise UnevenError(f"{op.name} takes other values in each block")
            found.append(self._value(value, self._index(block, index, self._source(value), slot)))
        return tuple(found)

    def _collected(
        self, sources: Sequence[Place | None], name: str
    ) -> Iterator[tuple[int, int | None]]:
        """The inputs of an operation outside of the runs: which of them, of which copies."""
        last, k = self._count - 1, 0
        known = {one for one in sources if one is not None}
        while k < len(sources):
            one = sources[k]
            if one is None:
                yield k, None
                k += 1
            elif one.block != 1:
                yield k, 0 if one.block == 0 else last
                k += 1
            else:
                group = [k]
                while group[-1] + 1 < len(sources):
                    following = sources[group[-1] + 1]
                    if following is None or following.block != 1:
                        break
                    group.append(group[-1] + 1)
                for g in group:
                    place = sources[g]
                    assert place is not None
                    if not {replace(place, block=0), replace(place, block=2)} <= known:
                        raise UnevenError(f"{name} takes what the middle block made alone")
                before = sources[k - 1] if k else None
                copies = range(1, last)
                descends = before is not None and before.block == 2
                for index in reversed(copies) if descends else copies:
                    for g in group:
                        yield g, index
                k = group[-1] + 1

    def _after(self, i: int, index: int | None, op: Operation) -> tuple[int, ...]:
        of, last = self._of, self._count - 1
        places = [of._at.get(j) for j in op.after]
        found: list[int] = []
        if index is None:
            for j, place in zip(op.after, places, strict=True):
                if place is None:
                    found.append(self._new_op[j, None])
                else:
                    indices = {0: [0], 1: range(1, last), 2: [last]}[place.block]
                    found += [self._new_op[self._counterpart(j, n), n] for n in indices]
            return tuple(found)
        block = of._at[i].block
        for j, place in zip(op.after, places, strict=True):
            if place is None:
                found.append(self._new_op[j, None])
                continue
            at = index + place.block - block
            if block != 1 and abs(place.block - block) == 2:
                at = 0 if place.block == 0 else last
            found.append(self._new_op[self._counterpart(j, at), at])
        return tuple(found)

    def _variable(self, i: int, index: int | None, variable: int | None) -> int | None:
        if variable is None:
            return None
        place = self._of._variables.get(variable)
        if place is None:
            return self._new_variable[variable, None]
        assert index is not None
        at = index + place.block - self._of._at[i].block
        mine = self._of._variable_at[replace(place, block=self._block(at))]
        return self._new_variable[mine, at]

    def _gradients(self) -> Iterator[tuple[int, int]]:
        for variable, value in self._step.gradients.items():
            place, source = self._of._variables.get(variable), self._source(value)
            if place is None:
                yield self._new_variable[variable, None], self._outer(value)
                continue
            if source is None:
                raise UnevenError("the gradient of a block's weight is made outside of all runs")
            ahead = source.block - place.block
            indices = {0: [0], 1: range(1, self._count - 1), 2: [self._count - 1]}[place.block]
            for index in indices:
                yield self._new_variable[variable, index], self._value(value, index + ahead)

    def _outer(self, value: int) -> int:
        source = self._source(value)
        if source is None:
            return self._new_value[value, None]
        if source.block == 1:
            raise UnevenError("a result of the step is that of the middle block")
        return self._value(value, 0 if source.block == 0 else self._count - 1)

    def _indices(self, value: int) -> Sequence[int | None]:
        source = self._source(value)
        if source is None:
            return [None]
        return {0: [0], 1: range(1, self._count - 1), 2: [self._count - 1]}[source.block]


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


def block_like(index: int, count: int) -> int:
    """The block of the short model, 0 to 2, that block `index` of `count` copies."""
    return 0 if index == 0 else 2 if index == count - 1 else 1
