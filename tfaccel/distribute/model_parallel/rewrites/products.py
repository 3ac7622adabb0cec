"""Products whose operands both have batch rows, or for which oneDNN writes out of bounds."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfaccel.distribute._private import OperationProxy
from tfaccel.distribute.model_parallel.rewrites.operation import Operation


def matmul(op: Operation) -> Any:
    """A product of rows with rows, with one side whole."""
    left, right = op.inputs
    if not (_starts_with_rows(left) and _starts_with_rows(right)):
        return op.create(op.inputs)
    if op.attrs["transpose_a"].b:  # a sum over rows
        return op.emit() if left.shape[1] is None else op.create(op.inputs)
    # Rows with rows: one axis cannot divide both dimensions of the result.
    op.replicate(1)
    return op.emit(())


def einsum(op: Operation) -> Any:
    """The same, written as an Einsum."""
    letters = op.attrs["equation"].s.decode().replace(" ", "").partition("->")[0].split(",")
    if len(op.inputs) != 2 or not all(map(_starts_with_rows, op.inputs)):
        return op.create(op.inputs)
    if letters[0][:1] == letters[1][:1]:
        return op.create(op.inputs)
    op.replicate(1)
    return op.emit(())


def _starts_with_rows(value: Any) -> bool:
    return bool(value.shape.rank) and value.shape[0] is None


def batch_matmul(op: Operation) -> Any:
    """A product of features of four or more dimensions with a kernel, computed as an Einsum.

    TensorFlow 2.21 with oneDNN writes past the end of the result of `[6, rows, 4, 1] @ [1, 8]` when
    the number of rows changes.
    """
    left, right = op.inputs
    if (op.rank(0) or 0) < 4 or op.rank(1) != 2 or op.attrs["adj_x"].b:
        return op.create(op.inputs)
    if left.dtype.is_complex:
        return op.create(op.inputs)
    others = "abcdefgh"[: left.shape.rank - 1]
    kernel = "zy" if op.attrs["adj_y"].b else "yz"
    product = tf.einsum(f"{others}y,{kernel}->{others}z", left, right)
    return OperationProxy(product.op, [product], op.inputs, op.attrs)
