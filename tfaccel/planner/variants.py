"""A model as some candidates run it, and with any number of its equal blocks; each is made once."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tfaccel.distribute.model_parallel.layout_planner import LayoutPlanner
from tfaccel.distribute.model_parallel.mesh import MeshShape
from tfaccel.planner import liveness
from tfaccel.planner.abstract import Made
from tfaccel.planner.block_copies import Role
from tfaccel.planner.gradient_reduction import with_reduced_gradients
from tfaccel.planner.state import Item, State, count_items, items
from tfaccel.planner.step_work import Work
from tfaccel.planner.steps import Step
from tfaccel.planner.unroll import Extension


@dataclass(frozen=True)
class Sized:
    """A model with some number of blocks.

    Attributes:
        step: of its training.
        sequence: the step's operations as they run.
        items: its variables.
        roles: of the operations, to compare models with more and fewer blocks.
    """

    step: Step
    sequence: Sequence[int]
    items: Sequence[Item]
    roles: Sequence[Sequence[Role]]

    @functools.cached_property
    def _exchanged(self) -> dict[int, tuple[Step, Sequence[int]]]:
        return {1: (self.step, self.sequence)}

    @functools.cached_property
    def _work(self) -> dict[tuple[int, int], Work]:
        return {}

    @functools.cached_property
    def _by_role(self) -> dict[int, Mapping[Role, int]]:
        return {}

    def by_role(self, operations: int) -> Mapping[Role, int]:
        """The operation of each role, with those of an exchange of gradients: of so many in all."""
        if operations not in self._by_role:
            found = {role: i for i, roles in enumerate(self.roles) for role in roles}
            more = operations - len(self.roles)
            found |= {(-1 - k, "", 0): len(self.roles) + k for k in range(more)}
            self._by_role[operations] = found
        return self._by_role[operations]

    def work(self, rows: int, replicas: int = 1) -> Work:
        """The step for this many rows, where as many replicas sum their gradients."""
        if (rows, replicas) not in self._work:
            if replicas not in self._exchanged:
                step = with_reduced_gradients(self.step, replicas)
                self._exchanged[replicas] = step, liveness.order(step)
            self._work[rows, replicas] = Work.of(*self._exchanged[replicas], rows)
        return self._work[rows, replicas]


@dataclass(frozen=True)
class Variant:
    """A model as some candidates run it.

    Attributes:
        model: without values; it has three of the repeating blocks.
        made: its variables, and those of its optimizer, in the order in which they were made.
        notes: what was assumed.
        traced: traces a step of its training.
        count: the number of repeating blocks; None where the model is as built.
        blocks: the block of each variable, 0 to 2; None for those in none.
    """

    model: Any
    made: Sequence[Made]
    notes: tuple[str, ...]
    traced: Callable[[], Step]
    count: int | None = None
    blocks: Sequence[int | None] = ()

    @functools.cached_property
    def step(self) -> Step:
        """A step of the training of `model`."""
        return self.traced()

    @functools.cached_property
    def extension(self) -> Extension:
        """Extends it to the step of a model with more blocks.

        Raises:
            UnevenError: when that is impossible.
        """
        likes = [(one.shape, one.dtype, one.trainable) for one in self.made]
        return Extension(self.step, self.blocks, likes)

    @functools.cached_property
    def items(self) -> list[Item]:
        """The role of each variable of `model`."""
        return items(self.model, self.made)

    @functools.cached_property
    def _sized(self) -> dict[tuple[int | None, int], Sized]:
        return {}

    @functools.cached_property
    def _listed(self) -> dict[int, list[Item]]:
        return {}

    @functools.cached_property
    def _states(self) -> dict[tuple[int | None, MeshShape | None, str | None], State]:
        return {}

    def state(self, count: int | None, mesh: MeshShape | None, layouts: str | None) -> State:
        """What one device holds of a model with `count` blocks.

        Args:
            count: of blocks; None for `model` itself.
            mesh: of a model that is split.
            layouts: ``"auto"`` or ``"fully_sharded"`` on a mesh.
        """
        key = (count, mesh, layouts)
        if key not in self._states:
            planner = LayoutPlanner(mesh, layouts or "auto") if mesh is not None else None
            self._states[key] = count_items(self.items_of(count), planner)
        return self._states[key]

    def items_of(self, count: int | None) -> list[Item]:
        """The variables of a model with `count` blocks; None for `model` itself."""
        if count is None:
            return self.items
        if count not in self._listed:
            self._listed[count] = list(self._items_of(count))
        return self._listed[count]

    def _items_of(self, count: int) -> Iterator[Item]:
        listed = self.extension.variables(count)
        number = {key: i for i, key in enumerate(listed)}
        for old, index in listed:
            one = self.items[old]
            like = one.like
            if like is not None:
                like = number.get((like, index), number.get((like, None)))
            yield dataclasses.replace(one, like=like, block=index)

    def sized(self, count: int | None, ends: int = 1) -> Sized:
        """The model with `count` blocks; None for `model` itself."""
        if (count, ends) not in self._sized:
            if count is None:
                step = self.step
                roles: Any = [((i, "", 0),) for i in range(len(step.operations))]
            else:
                extended = self.extension.to(count, ends)
                step, roles = extended.step, extended.roles
            self._sized[count, ends] = Sized(
                step, liveness.order(step), self.items_of(count), roles
            )
        return self._sized[count, ends]
