"""A device's memory between two steps: parameters and optimizer slots, variable by variable.

The layout of a variable on a mesh is decided by the same `LayoutPlanner` as when the model runs, in
creation order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tfaccel.distribute import _private
from tfaccel.distribute.model_parallel.layout_planner import LayoutPlanner, VariablePlan
from tfaccel.planner.abstract import Made


@dataclass(frozen=True)
class State:
    """Bytes of one device.

    Attributes:
        parameters: the model's weights, including frozen ones.
        slots: all variables of the optimizer.
        other: metrics, random states and the model's other variables.
        gradients: of all trained variables, in their storage layout.
        plans: the layout of each variable on a mesh, in the order of `made`; empty without one.
    """

    parameters: int
    slots: int
    other: int
    gradients: int
    plans: tuple[VariablePlan, ...]

    @property
    def total(self) -> int:
        """Bytes of all variables."""
        return self.parameters + self.slots + self.other


@dataclass(frozen=True)
class Item:
    """A variable, and its role.

    Attributes:
        made: it, or one that it is like.
        kind: ``"parameters"``, ``"slots"`` or ``"other"``.
        trained: whether it has a gradient.
        like: the index of the variable that a slot goes with, or None.
        block: the index of its block among equal blocks, or None.
    """

    made: Made
    kind: str
    trained: bool
    like: int | None
    block: int | None = None


def items(model: Any, made: Sequence[Made]) -> list[Item]:
    """The role of each variable.

    Args:
        model: built and compiled.
        made: its variables, and those of its optimizer, in the order in which they were made.
    """
    weights, slots = _held(model.weights), _held(getattr(model.optimizer, "variables", ()))
    trained = _held(model.trainable_variables)
    number = {id(one.variable): i for i, one in enumerate(made)}
    found = []
    for one in made:
        key = id(one.variable)
        kind = "parameters" if key in weights else "slots" if key in slots else "other"
        found.append(Item(one, kind, key in trained, number.get(id(one.like))))
    return found


def count(model: Any, made: Sequence[Made], planner: LayoutPlanner | None = None) -> State:
    """Counts what one device holds.

    Args:
        model: built and compiled.
        made: its variables, and those of its optimizer, in the order in which they were made.
        planner: of a mesh; None where every device holds everything.
    """
    return count_items(items(model, made), planner)


def count_items(listed: Sequence[Item], planner: LayoutPlanner | None = None) -> State:
    """Counts what one device holds of some variables.

    Args:
        listed: in the order in which they are made.
        planner: of a mesh, and new; None where every device holds everything.
    """
    plans = tuple(layouts(listed, planner)) if planner is not None else ()
    bytes_of = {"parameters": 0, "slots": 0, "other": 0, "gradients": 0}
    divisors: dict[tuple[str | None, ...], int] = {}
    for i, one in enumerate(listed):
        held = one.made.size
        if planner is not None:
            axes = plans[i].storage
            if axes not in divisors:
                divisors[axes] = parts(axes, planner)
            held //= divisors[axes]
        bytes_of[one.kind] += held
        bytes_of["gradients"] += held if one.trained else 0
    return State(**bytes_of, plans=plans)


def layouts(listed: Sequence[Item], planner: LayoutPlanner) -> list[VariablePlan]:
    """The layout of each variable on the mesh of `planner`."""
    found: list[VariablePlan] = []
    for item in listed:
        one, like = item.made, item.like
        if like is not None:
            plan = planner.slot(one.shape, listed[like].made.shape, found[like])
        else:
            plan = planner.variable(one.path, one.shape, one.trainable, one.layers)
        found.append(plan)
    return found


def parts(axes: Sequence[str | None], planner: LayoutPlanner) -> int:
    """The number of parts into which a layout divides a variable."""
    sizes, found = planner.mesh.sizes, 1
    for axis in axes:
        if axis is not None:
            found *= sizes[axis]
    return found


def _held(variables: Any) -> set[int]:
    return {id(_private.tf_variable(variable)) for variable in variables}
