"""`x[...]` with new axes, with indices, and with reversed dimensions.

New axes crash the process. After an index (`x[0]`) DTensor confuses the sharding of a dimension
with that of the next one, which gives wrong values. So both are separated from the slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfaccel.distribute._private import OperationProxy
from tfaccel.distribute.model_parallel.rewrites.operation import (
    Operation,
    is_shape,
    relayout_dims,
)


class Slices:
    """The request of `x[...]`: a begin, end and stride for each of its parts, and five masks.

    Attributes:
        new_axes: the parts that are a new axis.
        new_positions: the positions of the new axes in the result.
        reversed_dims: the dimensions of the input that are, or may be, reversed.
        indices: the parts that are an index, where a dimension after one of them remains.
        indexed_dims: the dimensions of the input that these remove.
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
        self.indices, self.indexed_dims = [], []
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
                if shrinks:
                    self.indices.append(part)
                    self.indexed_dims.append(dim)
                dim, place = dim + 1, place + (not shrinks)
        self.parts = parts
        if self.indexed_dims == list(range(rank - len(self.indexed_dims), rank)):
            self.indices, self.indexed_dims = [], []

    @property
    def plain(self) -> bool:
        """Whether DTensor itself supports this slice."""
        return not self.new_axes and not self.indices

    def simplified(self, vectors: Sequence[Any], attrs: Any) -> list[Any]:
        """The begin, end and strides of a slice that keeps all dimensions.

        Args:
            vectors: begin, end and strides.
            attrs: changed to match the result.
        """
        begin, end, strides = vectors
        end = _ends(begin, end, self.indices)
        kept = [part for part in range(self.parts) if part not in self.new_axes]
        shrinks = attrs["shrink_axis_mask"].i & ~sum(1 << part for part in self.indices)
        attrs["shrink_axis_mask"].i = shrinks
        for part in self.indices:  # an index has neither
            for mask in ("begin", "end"):
                attrs[f"{mask}_mask"].i &= ~(1 << part)
        for mask in ("begin", "end", "ellipsis", "shrink_axis"):
            bits = attrs[f"{mask}_mask"].i
            attrs[f"{mask}_mask"].i = sum((bits >> part & 1) << i for i, part in enumerate(kept))
        attrs["new_axis_mask"].i = 0
        return [_elements(vector, kept) for vector in (begin, end, strides)]


def _ends(begin: Any, end: Any, indices: list[int]) -> Any:
    """`end`, with the element after each index; after -1, the end of the dimension."""
    if not indices:
        return end
    last = begin.dtype.max
    static_begin, static_end = tf.get_static_value(begin), tf.get_static_value(end)
    if static_begin is not None and static_end is not None:
        ends = np.array(static_end)
        for part in indices:
            ends[part] = last if static_begin[part] == -1 else static_begin[part] + 1
        return tf.constant(ends, end.dtype)
    is_index = [part in indices for part in range(begin.shape[0])]
    return tf.where(is_index, tf.where(begin == -1, last, begin + 1), end)


def _elements(vector: Any, kept: list[int]) -> Any:
    static = tf.get_static_value(vector)
    if static is not None:
        return tf.constant(static[kept], vector.dtype)
    return vector if len(kept) == vector.shape[0] else tf.gather(vector, kept)


def strided_slice(op: Operation) -> Any:
    """`x[...]`, with new axes and indices separated, and whole rows where it reverses them."""
    rank = op.rank(0)
    if rank is None or op.inputs[3].shape.rank is None:
        return op.create(op.inputs)
    slices = Slices(rank, op.inputs[3], op.attrs)
    if is_shape(op.inputs[0]) and not slices.new_axes:
        return op.create(op.inputs)
    requested, attrs = op.inputs, {name: _copied(value) for name, value in op.attrs.items()}
    if slices.reversed_dims:
        op.replicate(0)
    if slices.plain:
        return op.emit() if slices.reversed_dims else op.create(op.inputs)
    value, *vectors = op.inputs
    vectors = slices.simplified(vectors, op.attrs)
    operation = None
    if slices.parts > len(slices.new_axes):
        operation = op.create([value, *vectors])
        (value,) = operation.outputs
    if slices.indexed_dims:
        value = tf.squeeze(value, slices.indexed_dims)
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
    for dim in slices.indexed_dims:
        gradient = tf.expand_dims(gradient, dim)
    if not slices.plain:
        vectors = slices.simplified(vectors, op.attrs)
    if slices.reversed_dims:
        gradient = relayout_dims(gradient, op.mesh)
    operation = op.create([shape, *vectors, gradient])
    (input_gradient,) = operation.outputs
    if slices.reversed_dims:
        input_gradient = relayout_dims(input_gradient, op.mesh)
    return OperationProxy(operation, [input_gradient], requested, attrs)


def _copied(value: Any) -> Any:
    copied = type(value)()
    copied.CopyFrom(value)
    return copied
