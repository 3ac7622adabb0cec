"""An operation under construction, and the layouts of its inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.experimental import dtensor

from tfaccel.distribute._private import OperationProxy
from tfaccel.distribute.model_parallel.layout_constraint import relayout

MAX_DIMS = 8  # of a tensor


class Operation:
    """An operation under construction.

    Args:
        create: creates it, from inputs and changed attributes.
        inputs: as requested.
        attrs: the same.
        strategy: of the step.
    """

    def __init__(
        self, create: Callable[..., Any], inputs: Sequence[Any], attrs: Any, strategy: Any
    ) -> None:
        self.create = create
        self.inputs = list(inputs)
        self.attrs = attrs
        self.strategy = strategy
        self.mesh = strategy.mesh

    def rank(self, which: int) -> int | None:
        """The rank of an input, or None if unknown."""
        rank: int | None = self.inputs[which].shape.rank
        return rank

    def replicate(self, which: int, dims: Any = None) -> None:
        """Lays an input out with these dimensions whole, or all for None; see `relayout_dims`."""
        value = self.inputs[which]
        if isinstance(value, tf.Tensor) and value.shape.rank and not is_shape(value):
            self.inputs[which] = relayout_dims(value, self.mesh, dims)

    def emit(self, dims: Any = None) -> Any:
        """The operation, with the dimensions `dims` of its outputs whole, or all for None.

        Without that, its consumers would determine its layout.
        """
        operation = self.create(self.inputs)
        return OperationProxy(
            operation,
            [
                relayout_dims(t, self.mesh, dims) if t.shape.rank and not is_shape(t) else t
                for t in operation.outputs
            ],
        )


def relayout_dims(value: Any, mesh: Any, dims: Any = None) -> Any:
    """`value` with the dimensions `dims` whole, or all for None, and its gradient too.

    The rows keep their sharding, unless they are in `dims`; no other dimension does.
    """
    specs = [dtensor.UNSHARDED] * value.shape.rank
    rows = rows_of(value)
    if dims is not None and rows not in dims:
        specs[rows] = dtensor.MATCH
    layout = dtensor.Layout(specs, mesh)
    return relayout(value, layout) if value.dtype.is_floating else dtensor.relayout(value, layout)


def rows_of(value: Any) -> int:
    """The batch dimension, whose size is unknown in a step."""
    sizes = value.shape.as_list()
    return sizes.index(None) if None in sizes else 0


def is_shape(value: tf.Tensor) -> bool:
    """Whether `value` may be a shape or paddings, computed beforehand if known.

    DTensor has to know shapes when it lays a step out: it looks for constants, but not through a
    relayout of them.
    """
    if value.dtype not in (tf.int32, tf.int64) or not value.shape.is_fully_defined():
        return False
    sizes = value.shape.as_list()
    return len(sizes) == 1 or (len(sizes) == 2 and sizes[0] <= MAX_DIMS and sizes[1] <= 2)
