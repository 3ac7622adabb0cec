"""Rewrites operations of a step that DTensor lays out wrongly, or cannot lay out.

DTensor's rules for some operations fail when one of their dimensions is divided; a few give other
numbers without a word, and one kills the process. While a step is traced, these operations are made
of operands that are whole where they must be. A layout is where numbers lie, so the numbers stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.experimental import dtensor

from tfaccel.distribute.model_parallel.pinned import relayout

MOST_STEPS = 8


class StandIn:
    """What the maker of an operation gets, where others were made in its place.

    Its inputs and attributes are those that were asked for, so that the gradient is the one of the
    operation that was asked for.

    Args:
        operation: one of those that were made.
        outputs: the tensors that take the place of its outputs.
        inputs: those of the operation that was asked for, or None where they are the same.
        attrs: the same of its attributes.
    """

    def __init__(
        self, operation: Any, outputs: list[Any], inputs: Any = None, attrs: Any = None
    ) -> None:
        self._operation = operation
        self.outputs = outputs
        self.inputs = operation.inputs if inputs is None else tuple(inputs)
        self._attrs = attrs

    def _get_attr_int(self, name: str) -> int:
        return int(self._attrs[name].i if self._attrs else self._operation._get_attr_int(name))

    def _get_attr_bool(self, name: str) -> bool:
        return bool(self._attrs[name].b if self._attrs else self._operation._get_attr_bool(name))

    def _get_attr_type(self, name: str) -> tf.DType:
        if self._attrs:
            return tf.as_dtype(self._attrs[name].type)
        return self._operation._get_attr_type(name)

    def get_attr(self, name: str) -> Any:
        """An attribute; of one that was rewritten, a number, a type or whether."""
        if not self._attrs:
            return self._operation.get_attr(name)
        value = self._attrs[name]
        held = getattr(value, value.WhichOneof("value"))
        return tf.as_dtype(held) if value.HasField("type") else held

    def __getattr__(self, name: str) -> Any:
        return getattr(self._operation, name)


class Operation:
    """An operation that is being made.

    Args:
        create: makes it, of inputs and changed attributes.
        inputs: it was asked for with.
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
        """The rank of an input, or None where it is not known."""
        rank: int | None = self.inputs[which].shape.rank
        return rank

    def whole(self, which: int, dims: Any = None) -> None:
        """Lays an input out with these dimensions whole, or all for None; see `laid_out`."""
        value = self.inputs[which]
        if isinstance(value, tf.Tensor) and value.shape.rank and not _is_shape(value):
            self.inputs[which] = laid_out(value, self.mesh, dims)

    def made(self, dims: Any = None) -> Any:
        """The operation, with the dimensions `dims` of its outputs whole, or all for None.

        Without that it would be laid out by what uses it.
        """
        operation = self.create(self.inputs)
        return StandIn(
            operation,
            [
                laid_out(t, self.mesh, dims) if t.shape.rank and not _is_shape(t) else t
                for t in operation.outputs
            ],
        )


def laid_out(value: Any, mesh: Any, dims: Any = None) -> Any:
    """`value` with the dimensions `dims` whole, or all for None, and its gradient too.

    The rows stay divided as they are, unless they are of `dims`; no other dimension does.
    """
    specs = [dtensor.UNSHARDED] * value.shape.rank
    rows = _rows(value)
    if dims is not None and rows not in dims:
        specs[rows] = dtensor.MATCH
    layout = dtensor.Layout(specs, mesh)
    return relayout(value, layout) if value.dtype.is_floating else dtensor.relayout(value, layout)


def _rows(value: Any) -> int:
    """The dimension of the rows of a batch, whose number a step does not know."""
    sizes = value.shape.as_list()
    return sizes.index(None) if None in sizes else 0


def _is_shape(value: tf.Tensor) -> bool:
    """Whether `value` may be a shape, which TensorFlow computes beforehand where it can."""
    return (
        value.dtype in (tf.int32, tf.int64) and value.shape.rank == 1 and value.shape[0] is not None
    )


# --- Slices ---------------------------------------------------------------------------------


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


def _strided_slice(op: Operation) -> Any:
    rank = op.rank(0)
    if rank is None or op.inputs[3].shape.rank is None or _is_shape(op.inputs[0]):
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


def _strided_slice_grad(op: Operation) -> Any:
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


# --- Operations that take a dimension apart, or put it together -------------------------------


def _axis(value: Any, rank: int | None) -> int | None:
    static = tf.get_static_value(value)
    return None if static is None or rank is None else int(static) % rank


def _split(axis: int, value: int) -> Callable[[Operation], Any]:
    def split(op: Operation) -> Any:
        dim = _axis(op.inputs[axis], op.rank(value))
        op.whole(value, None if dim is None else [dim])
        return op.create(op.inputs)

    return split


def _unpack(op: Operation) -> Any:
    if (rank := op.rank(0)) is not None:
        op.whole(0, [op.attrs["axis"].i % rank])
    return op.create(op.inputs)


def _concat(op: Operation) -> Any:
    *values, axis = op.inputs
    if op.strategy.planner.fully_sharded:
        # Gradients of parameters that are gathered for their use could not be cut any more.
        return op.create(op.inputs)
    dim = _axis(axis, values[0].shape.rank)
    if dim is not None:
        for which in range(len(values)):
            op.whole(which, [dim])
    return op.create(op.inputs)


def _pad(op: Operation) -> Any:
    static = tf.get_static_value(op.inputs[1])
    padded = None if static is None else [d for d, around in enumerate(static) if around.any()]
    op.whole(0, padded)
    return op.made(padded)


def _transpose(op: Operation) -> Any:
    # DTensor transposes no tensor whose result its users would like to be divided otherwise.
    return op.made() if _is_whole(op.inputs[0]) else op.create(op.inputs)


def _is_whole(value: Any) -> bool:
    """Whether `value` was laid out whole by us, and then changed element by element at most."""
    for _ in range(MOST_STEPS):
        made_by = value.op
        if made_by.type == "Relayout":
            layout = dtensor.Layout.from_string(made_by.get_attr("layout").decode())
            return bool(layout.is_fully_replicated())
        if made_by.type not in ("Cast", "Identity", "IdentityN", "Mul", "Neg", "Relu", "Tanh"):
            return False
        value = made_by.inputs[0]
    return False


def whole(op: Operation) -> Any:
    """The operation of whole operands: every device computes all of it."""
    for which in range(len(op.inputs)):
        op.whole(which)
    return op.made()


def _reshape(op: Operation) -> Any:
    value, _ = op.inputs
    if value.shape.rank is None or _is_shape(value):
        return op.create(op.inputs)
    operation = op.create(op.inputs)
    (made,) = operation.outputs
    if made.shape.rank is None or _before_rows(value) == _before_rows(made):
        return operation
    # The rows of the batch come to lie between others: no slice of them is one of the result.
    op.whole(0)
    return op.made()


def _before_rows(value: Any) -> int:
    return math.prod(value.shape.as_list()[: _rows(value)])


# --- Products ---------------------------------------------------------------------------------


def _matmul(op: Operation) -> Any:
    left, right = op.inputs
    if not (_starts_with_rows(left) and _starts_with_rows(right)):
        return op.create(op.inputs)
    if op.attrs["transpose_a"].b:  # a sum over rows
        return op.made() if left.shape[1] is None else op.create(op.inputs)
    # Rows with rows: one axis cannot divide both dimensions of what comes out.
    op.whole(1)
    return op.made(())


def _einsum(op: Operation) -> Any:
    letters = op.attrs["equation"].s.decode().replace(" ", "").partition("->")[0].split(",")
    if len(op.inputs) != 2 or not all(map(_starts_with_rows, op.inputs)):
        return op.create(op.inputs)
    if letters[0][:1] == letters[1][:1]:
        return op.create(op.inputs)
    op.whole(1)
    return op.made(())


def _starts_with_rows(value: Any) -> bool:
    return bool(value.shape.rank) and value.shape[0] is None


def _batch_matmul(op: Operation) -> Any:
    """Of features of four or more dimensions with a kernel, which is done as an Einsum.

    TensorFlow 2.21 with oneDNN writes beyond the result of `[6, rows, 4, 1] @ [1, 8]` when the
    number of rows changes.
    """
    left, right = op.inputs
    if (op.rank(0) or 0) < 4 or op.rank(1) != 2 or op.attrs["adj_x"].b:
        return op.create(op.inputs)
    if left.dtype.is_complex:
        return op.create(op.inputs)
    others = "abcdefgh"[: left.shape.rank - 1]
    kernel = "zy" if op.attrs["adj_y"].b else "yz"
    made = tf.einsum(f"{others}y,{kernel}->{others}z", left, right)
    return StandIn(made.op, [made], op.inputs, op.attrs)


# --- Random numbers ---------------------------------------------------------------------------


def _random(draw: Callable[..., tf.Tensor]) -> Callable[[Operation], Any]:
    """DTensor lays out random operations without a state of their own: it becomes a variable's."""

    def drawn(op: Operation) -> Any:
        seed = op.strategy.seeds.following(op.attrs["seed"].i, op.attrs["seed2"].i)
        made = draw(op, seed)
        return StandIn(made.op, [made], op.inputs, op.attrs)

    return drawn


def _normal(op: Operation, seed: Any) -> tf.Tensor:
    return tf.random.stateless_normal(op.inputs[0], seed, dtype=op.attrs["dtype"].type)


def _truncated(op: Operation, seed: Any) -> tf.Tensor:
    return tf.random.stateless_truncated_normal(op.inputs[0], seed, dtype=op.attrs["dtype"].type)


def _uniform(op: Operation, seed: Any) -> tf.Tensor:
    return tf.random.stateless_uniform(op.inputs[0], seed, dtype=op.attrs["dtype"].type)


def _integers(op: Operation, seed: Any) -> tf.Tensor:
    shape, least, limit = op.inputs
    return tf.random.stateless_uniform(shape, seed, least, limit, dtype=op.attrs["Tout"].type)


def _shuffled(op: Operation, seed: Any) -> tf.Tensor:
    op.whole(0)
    (value,) = op.inputs
    keys = tf.random.stateless_uniform(tf.shape(value)[:1], seed)
    return tf.gather(value, tf.argsort(laid_out(keys, op.mesh)))


RULES: dict[str, Callable[[Operation], Any]] = {
    "BatchMatMulV2": _batch_matmul,
    "ConcatV2": _concat,
    "Einsum": _einsum,
    "MatMul": _matmul,
    "Pad": _pad,
    "PadV2": _pad,
    "RandomShuffle": _random(_shuffled),
    "RandomStandardNormal": _random(_normal),
    "RandomUniform": _random(_uniform),
    "RandomUniformInt": _random(_integers),
    "Reshape": _reshape,
    "ScatterNd": whole,
    "Split": _split(axis=0, value=1),
    "SplitV": _split(axis=2, value=0),
    "StridedSlice": _strided_slice,
    "StridedSliceGrad": _strided_slice_grad,
    "Transpose": _transpose,
    "TruncatedNormal": _random(_truncated),
    "Unpack": _unpack,
}
