"""`x[...]` with new axes, which kill the process, and of dimensions that are turned around."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfaccel.distribute._private import OperationProxy
from tfaccel.distribute.model_parallel.rewrites.operation import (
    Operation,
    is_shape,
    relayout_dims,
)


class Slices:
    """What `x[...]` asks for: a begin, end and stride for each of its parts, and five masks.

    Attributes:
        new_axes: the parts that are a new axis.
        new_positions: where in the result the new axes are.
        reversed_dims: the dimensions of the input that are, or may be, turned around.
    """

    def __init__(self, rank: int, strides: Any, attrs: Any) -> None:
        parts = strides.shape[0]
        steps = tf.get_static_value(strides)

        def marked(mask: str, part: int) -> bool:
            return bool(attrs[f"{mask}_mask"].i >> part & 1)

        ellipsis = {part for part in range(parts) if marked("ellipsis", part)}
        self.new_axes = [p for p in range(parts) if p not in ellipsis and marked("new_axis", p)]
        taken = parts - len(self.new_axes) - len(ellipsis)
        self.new_positions, self.reversed_dims = [], []
        dim = place = 0
        for part in range(parts):
            if part in ellipsis:
                dim, place = dim + rank - taken, place + rank - taken
            elif part in self.new_axes:
                self.new_positions.append(place)
                place += 1
            else:
                shrinks = marked("shrink_axis", part)
                if not shrinks and (steps is None or steps[part] < 0):
                    self.reversed_dims.append(dim)
                dim, place = dim + 1, place + (not shrinks)
        self.parts = parts

    def without_new_axes(self, vectors: Sequence[Any], attrs: Any) -> list[Any]:
        """The begin, end and strides without new axes; `attrs` are changed to go with them."""
        kept = [part for part in range(self.parts) if part not in self.new_axes]
        for mask in ("begin", "end", "ellipsis", "shrink_axis"):
            bits = attrs[f"{mask}_mask"].i
            attrs[f"{mask}_mask"].i = sum((bits >> part & 1) << i for i, part in enumerate(kept))
        attrs["new_axis_mask"].i = 0
        return [_elements(vector, kept) for vector in vectors]


def _elements(vector: Any, kept: list[int]) -> Any:
    static = tf.get_static_value(vector)
    if static is not None:
        return tf.constant(static[kept], vector.dtype)
    return tf.gather(vector, kept)


def strided_slice(op: Operation) -> Any:
    """`x[...]`, its new axes made apart, and of whole rows where it turns them around."""
    rank = op.rank(0)
    if rank is None or op.inputs[3].shape.rank is None or is_shape(op.inputs[0]):
        return op.create(op.inputs)
    slices = Slices(rank, op.inputs[3], op.attrs)
    requested, attrs = op.inputs, {name: _copied(value) for name, value in op.attrs.items()}
    if slices.reversed_dims:
        op.replicate(0)
    if not slices.new_axes:
        return op.emit() if slices.reversed_dims else op.create(op.inputs)
    value, *vectors = op.inputs
    vectors = slices.without_new_axes(vectors, op.attrs)
    operation = None
    if slices.parts > len(slices.new_axes):
        operation = op.create([value, *vectors])
        (value,) = operation.outputs
    for place in slices.new_positions:
        value = tf.expand_dims(value, place)
    return OperationProxy(operation or value.op, [value], requested, attrs)


def strided_slice_grad(op: Operation) -> Any:
    """The gradient of `x[...]`, likewise."""
    rank = op.inputs[0].shape[0] if op.inputs[0].shape.rank else None
    if rank is None or op.inputs[3].shape.rank is None:
        return op.create(op.inputs)
    slices = Slices(rank, op.inputs[3], op.attrs)
    requested, attrs = list(op.inputs), {name: _copied(value) for name, value in op.attrs.items()}
    shape, *vectors, gradient = op.inputs
    if slices.new_axes:
        gradient = tf.squeeze(gradient, slices.new_positions)
        if slices.parts == len(slices.new_axes):
            return OperationProxy(gradient.op, [gradient], requested, attrs)
        vectors = slices.without_new_axes(vectors, op.attrs)
    if slices.reversed_dims:
        gradient = relayout_dims(gradient, op.mesh)
    operation = op.create([shape, *vectors, gradient])
    (made,) = operation.outputs
    if slices.reversed_dims:
        made = relayout_dims(made, op.mesh)
    return OperationProxy(operation, [made], requested, attrs)


def _copied(value: Any) -> Any:
    copied = type(value)()
    copied.CopyFrom(value)
    return copied
