"""A step for a number of rows, with all that does not depend on how the model is split."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfaccel.planner import operation_costs, sharding_propagation
from tfaccel.planner.steps import Operation, Step

Array = np.ndarray[Any, Any]
# Results of unknown shape but few elements.
_SMALL = frozenset({"BroadcastGradientArgs", "Placeholder", "VarHandleOp", "NoOp"})


@dataclass(frozen=True)
class Work:
    """What the candidates of one number of rows share.

    Attributes:
        step: that runs.
        sequence: its operations as they run.
        shapes: of its values; None where unknown.
        sizes: bytes of each value; 0 where unknown.
        flops: each operation that computes something, and its floating-point operations.
        unknown: the first operation of which a result's shape is unknown, if it may be large.
    """

    step: Step
    sequence: Sequence[int]
    shapes: Sequence[tuple[int, ...] | None]
    sizes: Sequence[int]
    flops: Sequence[tuple[int, int]]
    unknown: Operation | None

    @classmethod
    def of(cls, step: Step, sequence: Sequence[int], rows: int) -> Work:
        """Counts a step for a batch of `rows` rows."""
        shapes = step.shapes(rows)
        sizes = step.sizes_of(shapes)
        counted = ((i, operation_costs.flops(op, shapes)) for i, op in enumerate(step.operations))
        unknown = next((op for op in step.operations if op.kind not in _SMALL
                        and any(shapes[v] is None for v in op.outputs)), None)  # fmt: skip
        flops = [(i, number) for i, number in counted if number]
        return cls(step, sequence, shapes, sizes, flops, unknown)

    @functools.cached_property
    def _spreads(self) -> dict[Hashable, sharding_propagation.Spread]:
        return {}

    def spread(
        self, devices: int, variables: Mapping[int, int | None]
    ) -> sharding_propagation.Spread:
        """How the model axis of a mesh divides the step, as of `sharding_propagation.spread`."""
        key = devices, tuple(variables.items())
        if key not in self._spreads:
            self._spreads[key] = sharding_propagation.spread(
                self.step, self.shapes, devices, variables
            )
        return self._spreads[key]

    @functools.cached_property
    def _operands(self) -> tuple[Array, Array]:
        """The operands and results of the operations of `flops`, and where each one's begin."""
        operations = self.step.operations
        taken = [(*operations[i].inputs, *operations[i].outputs) for i, _ in self.flops]
        begins = np.cumsum([0, *(len(one) for one in taken)])[:-1]
        return np.array([v for one in taken for v in one], np.int64), begins

    @functools.cached_property
    def halves(self) -> Array:
        """Whether each operation of `flops` computes in 16 bits."""
        values, operations = self.step.values, self.step.operations
        return np.array(
            [any(values[v].width == 2 for v in operations[i].outputs) for i, _ in self.flops], bool
        )

    @functools.cached_property
    def _moves(self) -> Array:
        operations = self.step.operations
        return np.array([operation_costs.moves(operations[i]) for i, _ in self.flops], bool)

    def moved(self, sizes: Sequence[int]) -> Array:
        """Bytes that each operation of `flops` reads and writes, with values of these `sizes`."""
        return np.where(self._moves, self._sum(np.array(sizes, np.int64)), 0)

    def divided(self, dims: Sequence[int | None]) -> Array:
        """Whether a mesh divides an operand or a result of each operation of `flops`."""
        return self._sum(np.array([dim is not None for dim in dims], np.int64)) > 0

    def _sum(self, numbers: Array) -> Array:
        values, begins = self._operands
        return np.add.reduceat(numbers[values], begins) if len(begins) else np.zeros(0, np.int64)
