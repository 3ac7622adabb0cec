"""One trace of a step with several updates, and the step that each of them makes alone.

The optimizer updates once in each of several ways, one after the other. A step of one way is the
graph without what the others made. TensorFlow makes operations on one resource wait for each other
in the order of the program (`AutomaticControlDependencies`), so those behind an update that is left
out wait for earlier ones. What they wait for follows from the same rule, which must reproduce what
the operations of the whole graph wait for.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from tfaccel.distribute import _private


@dataclass(frozen=True)
class Part:
    """Some operations of a graph, as they would be in a graph of their own.

    Attributes:
        operations: indices of operations in the order of their creation.
        waits: of each, the operations that it waits for without using their values.
        left_out: operations that would not be there.
    """

    operations: Sequence[int]
    waits: Mapping[int, Set[int]]
    left_out: Set[int] = frozenset()


@dataclass(frozen=True)
class _Graph:
    """A function's graph, whose operations are numbers."""

    operations: Sequence[Any]
    number: Mapping[int, int]
    captures: Set[int]

    @classmethod
    def of(cls, graph: Any) -> _Graph:
        operations = graph.get_operations()
        number = {id(op): i for i, op in enumerate(operations)}
        return cls(operations, number, {number[id(inside.op)] for _, inside in graph.captures})

    @functools.cached_property
    def uses(self) -> list[dict[int, bool]]:
        """The resources that each operation uses, by handle, and whether it may change them."""
        found = []
        for op in self.operations:
            one: dict[int, bool] = {}
            for handle, changes in _private.resources_of(op):
                one.setdefault(id(handle), changes)
            found.append(one)
        return found

    @functools.cached_property
    def ordered(self) -> list[bool]:
        """Whether each operation has side effects, but on no resource."""
        return [
            not used and _private.is_ordered_by_trace(op)
            for op, used in zip(self.operations, self.uses, strict=True)
        ]

    def waits(self) -> dict[int, set[int]]:
        return {
            i: {self.number[id(o)] for o in op.control_inputs}
            for i, op in enumerate(self.operations)
        }


def whole(graph: Any) -> Part:
    """All operations of a graph that run: those needed for results and side effects."""
    made = _Graph.of(graph)
    return _reached(graph, made, range(len(made.operations)), made.waits())


def parts(graph: Any, ends: Sequence[int]) -> list[Part] | None:
    """The step of each update in a graph with several; None if they cannot be told apart.

    Args:
        graph: of a step.
        ends: the number of operations before the first update, and after each.
    """
    made = _Graph.of(graph)
    found, ordered = made.waits(), _in_program_order(made, range(len(made.operations)))
    if any(not ordered[i] <= found[i] for i in found):
        return None
    explicit = {i: found[i] - ordered[i] for i in found}
    each = [_part(graph, made, ends, k, explicit) for k in range(len(ends) - 1)]
    return [part for part in each if part is not None] if None not in each else None


def _part(
    graph: Any,
    made: _Graph,
    ends: Sequence[int],
    update: int,
    explicit: Mapping[int, Set[int]],
) -> Part | None:
    others = {*range(ends[0], ends[-1])} - {*range(ends[update], ends[update + 1])}
    kept: list[int] = []
    moved: set[int] = set()
    for i, op in enumerate(made.operations):
        if i in others:
            continue
        makers = [made.number[id(t.op)] for t in op.inputs]
        for k, maker in enumerate(makers):
            if maker in others and maker not in moved:
                # Whatever a step takes from outside is created where it is used for the first time.
                if maker not in made.captures:
                    return None
                moved.add(maker)
                kept.insert(len(kept) - _made_with(made, op, makers[k + 1 :], kept), maker)
        kept.append(i)
    left_out = others - moved
    # Nothing waits for a read whose value is not used.
    unused = {i for i in kept if _is_unused_read(made, i, left_out)}
    waits = _in_program_order(made, kept)
    for i in kept:
        more = explicit[i]
        if more & left_out and made.operations[i].type != "NoOp":
            return None
        waits[i] |= more - left_out - (unused if made.operations[i].type == "NoOp" else set())
    return replace(_reached(graph, made, kept, waits, unused), left_out=left_out)


def _made_with(made: _Graph, op: Any, later: Sequence[int], kept: Sequence[int]) -> int:
    """How many constants an operation has created for its later inputs, directly before it."""
    count = 0
    while count < len(kept) and kept[-1 - count] in later:
        if not made.operations[kept[-1 - count]].name.startswith(f"{op.name}/"):
            break
        count += 1
    return count


def _in_program_order(made: _Graph, kept: Sequence[int]) -> dict[int, set[int]]:
    """What each operation waits for, since it uses the same resource as an earlier one."""
    changed: dict[int, int] = {}  # by a resource's handle, the last operation that may change it
    read: dict[int, list[int]] = {}  # those that have only read it since then
    waits: dict[int, set[int]] = {}
    last = None  # with side effects on no resource
    for i in kept:
        found = waits[i] = set()
        for handle, changes in made.uses[i].items():
            if handle in changed:
                found.add(changed[handle])
            if changes:
                found.update(read.pop(handle, ()))
                changed[handle] = i
            else:
                read.setdefault(handle, []).append(i)
        if made.ordered[i]:
            if last is not None:
                found.add(last)
            last = i
    return waits


def _is_unused_read(made: _Graph, i: int, left_out: Set[int]) -> bool:
    """Whether only operations that are left out use what an operation reads from a variable."""
    if not made.uses[i] or any(made.uses[i].values()):
        return False
    outputs = made.operations[i].outputs
    users = [made.number[id(o)] for t in outputs for o in t.consumers()]
    return all(user in left_out for user in users)


def _reached(
    graph: Any,
    made: _Graph,
    kept: Sequence[int],
    waits: Mapping[int, Set[int]],
    unused: Set[int] = frozenset(),
) -> Part:
    inside = {*kept}
    open_ = [made.number[id(t.op)] for t in graph.outputs]
    for op in graph.control_outputs:
        i = made.number[id(op)]
        if i in inside and i not in unused:
            open_.append(i)
    found: set[int] = set()
    while open_:
        i = open_.pop()
        if i not in found:
            found.add(i)
            open_ += [made.number[id(t.op)] for t in made.operations[i].inputs]
            open_ += waits[i]
    return Part([i for i in kept if i in found], waits)
