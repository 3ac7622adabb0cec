"""A step for a number of rows, with all that does not depend on how the model is split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tfaccel.planner import operation_costs
from tfaccel.planner.steps import Step


@dataclass(frozen=True)
class Work:
    """What the candidates of one number of rows share.

    Attributes:
        step: that runs.
        sequence: its operations as they run.
        shapes: of its values; None where unknown.
        sizes: bytes of each value; 0 where unknown.
        flops: each operation that computes something, and its floating-point operations.
    """

    step: Step
    sequence: Sequence[int]
    shapes: Sequence[tuple[int, ...] | None]
    sizes: Sequence[int]
    flops: Sequence[tuple[int, int]]

    @classmethod
    def of(cls, step: Step, sequence: Sequence[int], rows: int) -> Work:
        """Counts a step for a batch of `rows` rows."""
        shapes = step.shapes(rows)
        sizes = [
            0 if shape is None else math.prod(shape) * value.width
            for shape, value in zip(shapes, step.values, strict=True)
        ]
        counted = ((i, operation_costs.flops(op, shapes)) for i, op in enumerate(step.operations))
        return cls(step, sequence, shapes, sizes, [(i, number) for i, number in counted if number])
