"""Operations that split, join or move a dimension."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.experimental import dtensor

from tfaccel.distribute.model_parallel.rewrites.operation import Operation, is_shape, rows_of

MAX_STEPS = 8


def _axis(value: Any, rank: int | None) -> int | None:
    static = tf.get_static_value(value)
    return None if static is None or rank is None else int(static) % rank


def split(axis: int, value: int) -> Callable[[Operation], Any]:
    """Splits a whole dimension; the arguments are the positions of the inputs."""

    def split_replicated(op: Operation) -> Any:
        dim = _axis(op.inputs[axis], op.rank(value))
        op.replicate(value, None if dim is None else [dim])
        return op.create(op.inputs)

    return split_replicated


def unpack(op: Operation) -> Any:
    """Unstacks a whole dimension."""
    if (rank := op.rank(0)) is not None:
        op.replicate(0, [op.attrs["axis"].i % rank])
    return op.create(op.inputs)


def concat(op: Operation) -> Any:
    """Concatenates along a whole dimension."""
    *values, axis = op.inputs
    dim = _axis(axis, values[0].shape.rank)
    if dim is not None:
        for which in range(len(values)):
            op.replicate(which, [dim])
    return op.create(op.inputs)


def pad(op: Operation) -> Any:
    """Pads whole dimensions."""
    static = tf.get_static_value(op.inputs[1])
    padded = None if static is None else [d for d, around in enumerate(static) if around.any()]
    op.replicate(0, padded)
    return op.emit(padded)


def transpose(op: Operation) -> Any:
    """Keeps the result of a whole operand whole."""
    # DTensor cannot transpose a tensor whose consumers prefer another sharding of the result.
    return op.emit() if _is_replicated(op.inputs[0]) else op.create(op.inputs)


def _is_replicated(value: Any) -> bool:
    """Whether `value` was replicated here, and then changed at most element-wise."""
    for _ in range(MAX_STEPS):
        made_by = value.op
        if made_by.type == "Relayout":
            layout = dtensor.Layout.from_string(made_by.get_attr("layout").decode())
            return bool(layout.is_fully_replicated())
        if made_by.type not in ("Cast", "Identity", "IdentityN", "Mul", "Neg", "Relu", "Tanh"):
            return False
        value = made_by.inputs[0]
    return False


def reshape(op: Operation) -> Any:
    """Reshapes; whole operands where rows move between other dimensions."""
    value, _ = op.inputs
    if value.shape.rank is None or is_shape(value):
        return op.create(op.inputs)
    operation = op.create(op.inputs)
    (reshaped,) = operation.outputs
    if reshaped.shape.rank is None or _before_rows(value) == _before_rows(reshaped):
        return operation
    # The batch rows move between other dimensions: a slice of them is not a slice of the result.
    op.replicate(0)
    return op.emit()


def _before_rows(value: Any) -> int:
    return math.prod(value.shape.as_list()[: rows_of(value)])
