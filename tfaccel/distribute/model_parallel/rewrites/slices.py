"""`x[...]` with new axes, which kill the process, and of dimensions that are turned around."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfaccel.distribute.model_parallel.rewrites.operation import (
    Operation,
    StandIn,
    is_shape,
    laid_out,
)


class Slices:
    """What `x[...]` asks for: a begin, end and stride for each of its parts, and five masks.

    Attributes:
        new: the parts that are a new axis.
        places: where in the result the new axes are.
        turned: the dimensions of the input that are, or may be, turned around.
    """

    def __init__(self, rank: int, strides: Any, attrs: Any) -> None:
        parts = strides.shape[0]
        steps = tf.get_static_value(strides)

        def marked(mask: str, part: int) -> bool:
            return bool(attrs[f"{mask}_mask"].i >> part & 1)

        ellipsis = {part for part in range(parts) if marked("ellipsis", part)}
        self.new = [p for p in range(parts) if p not in ellipsis and marked("new_axis", p)]
        taken = parts - len(self.new) - len(ellipsis)
        self.places, self.turned = [], []
        dim = place = 0
        for part in range(parts):
            if part in ellipsis:
                dim, place = dim + rank - taken, place + rank - taken
            elif part in self.new:
                self.places.append(place)
                place += 1
            else:
                shrinks = marked("shrink_axis", part)
                if not shrinks and (steps is None or steps[part] < 0):
                    self.turned.append(dim)
                dim, place = dim + 1, place + (not shrinks)
        self.parts = parts

    def without_new(self, vectors: Sequence[Any], attrs: Any) -> list[Any]:
        """The begin, end and strides without new axes; `attrs` are changed to go with them."""
        kept = [part for part in range(self.parts) if part not in self.new]
        for mask in ("begin", "end", "ellipsis", "shrink_axis"):
            bits = attrs[f"{mask}_mask"].i
            attrs[f"{mask}_mask"].i = sum((bits >> part & 1) << i for i, part in enumerate(kept))
        attrs["new_axis_mask"].i = 0
        return [_at(vector, kept) for vector in vectors]


def _at(vector: Any, kept: list[int]) -> Any:
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
    asked, attrs = op.inputs, {name: _copied(value) for name, value in op.attrs.items()}
    if slices.turned:
        op.whole(0)
    if not slices.new:
        return op.made() if slices.turned else op.create(op.inputs)
    value, *vectors = op.inputs
    vectors = slices.without_new(vectors, op.attrs)
    operation = None
    if slices.parts > len(slices.new):
        operation = op.create([value, *vectors])
        (value,) = operation.outputs
    for place in slices.places:
        value = tf.expand_dims(value, place)
    return StandIn(operation or value.op, [value], asked, attrs)


def strided_slice_grad(op: Operation) -> Any:
    """The gradient of `x[...]`, likewise."""
    rank = op.inputs[0].shape[0] if op.inputs[0].shape.rank else None
    if rank is None or op.inputs[3].shape.rank is None:
        return op.create(op.inputs)
    slices = Slices(rank, op.inputs[3], op.attrs)
    asked, attrs = list(op.inputs), {name: _copied(value) for name, value in op.attrs.items()}
    shape, *vectors, gradient = op.inputs
    if slices.new:
        gradient = tf.squeeze(gradient, slices.places)
        if slices.parts == len(slices.new):
            return StandIn(gradient.op, [gradient], asked, attrs)
        vectors = slices.without_new(vectors, op.attrs)
    if slices.turned:
        gradient = laid_out(gradient, op.mesh)
    operation = op.create([shape, *vectors, gradient])
    (made,) = operation.outputs
    if slices.turned:
        made = laid_out(made, op.mesh)
    return StandIn(operation, [made], asked, attrs)


def _copied(value: Any) -> Any:
    copied = type(value)()
    copied.CopyFrom(value)
    return copied
