"""A training step as a list of operations on values of known shapes, which is all a plan needs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Value:
    """A tensor of a step.

    Attributes:
        fewer: its shape for the smaller traced number of rows; None if unknown.
        more: the same for the larger.
        width: bytes of an element.
    """

    fewer: tuple[int, ...] | None
    more: tuple[int, ...] | None
    width: int


@dataclass(frozen=True)
class Operation:
    """An operation of a step.

    Attributes:
        name: in the graph.
        kind: TensorFlow's operation type.
        inputs: indices of values.
        outputs: the same.
        after: indices of operations that it waits for without using their values.
        variable: the index of the variable that it reads or changes; None for none.
        backward: whether it was created for a gradient.
        attributes: those that define its effect on dimensions.
        source: TensorFlow's operation, in the graph for the larger batch; None where it has none.
    """

    name: str
    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    after: tuple[int, ...]
    variable: int | None
    backward: bool
    attributes: Mapping[str, Any] = field(default_factory=dict)
    source: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Step:
    """A training step, traced for two numbers of rows.

    Between the two, and beyond them, every dimension is assumed linear in the rows.

    Attributes:
        rows: the two.
        values: its tensors.
        operations: in creation order.
        arguments: the values that are the batch.
        results: the values that it returns.
        gradients: the value of each variable's gradient, by the variable's index.
        constants: bytes of tensors outside of the graph that it uses.
        uncounted: an operation whose memory is not counted, such as a loop; "" for none.
        copies: values that are copies of gradients.
        captured: those bytes by the value that stands for each tensor.
    """

    rows: tuple[int, int]
    values: tuple[Value, ...]
    operations: tuple[Operation, ...]
    arguments: tuple[int, ...]
    results: tuple[int, ...]
    gradients: Mapping[int, int]
    constants: int
    uncounted: str
    copies: tuple[int, ...] = ()
    captured: Mapping[int, int] = field(default_factory=dict)

    def shapes(self, rows: int) -> list[tuple[int, ...] | None]:
        """The shape of every value for a batch of `rows` rows."""
        fewer, more = self.rows
        above, among = (rows - fewer, more - fewer) if more > fewer else (0, 1)
        made: dict[int, tuple[int, ...] | None] = {}  # copies of a block have the same values
        for value in self.values:
            key = id(value)
            if key in made:
                continue
            if value.fewer is None or value.more is None:
                made[key] = None
            elif value.fewer == value.more:
                made[key] = value.fewer
            else:
                made[key] = tuple(
                    max(0, a - (a - b) * above // among)
                    for a, b in zip(value.fewer, value.more, strict=True)
                )
        return [made[id(value)] for value in self.values]

    def sizes(self, rows: int) -> list[int]:
        """Bytes of every value for a batch of `rows` rows; 0 where they are not known."""
        return self.sizes_of(self.shapes(rows))

    def sizes_of(self, shapes: Sequence[tuple[int, ...] | None]) -> list[int]:
        """Bytes of every value with these shapes; 0 where they are not known."""
        return [
            0 if shape is None else math.prod(shape) * value.width
            for shape, value in zip(shapes, self.values, strict=True)
        ]
