"""Rewrites operations of a step that DTensor lays out wrongly, or cannot lay out.

DTensor's rules for some operations fail when one of their dimensions is divided; a few silently
give wrong numbers, and one crashes the process. While a step is traced, these operations get
operands that are whole where they must be. A layout only places values, so the numbers do not
change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tfaccel.distribute.model_parallel.rewrites import products, random_numbers, shapes, slices
from tfaccel.distribute.model_parallel.rewrites.operation import Operation

__all__ = ["REWRITES", "Operation", "replicate_operands"]


def replicate_operands(op: Operation) -> Any:
    """The operation on whole operands: every device computes all of it."""
    for which in range(len(op.inputs)):
        op.replicate(which)
    return op.emit()


REWRITES: dict[str, Callable[[Operation], Any]] = {
    "BatchMatMulV2": products.batch_matmul,
    "ConcatV2": shapes.concat,
    "Einsum": products.einsum,
    "MatMul": products.matmul,
    "Pad": shapes.pad,
    "PadV2": shapes.pad,
    "RandomShuffle": random_numbers.stateless(random_numbers.shuffle),
    "RandomStandardNormal": random_numbers.stateless(random_numbers.normal),
    "RandomUniform": random_numbers.stateless(random_numbers.uniform),
    "RandomUniformInt": random_numbers.stateless(random_numbers.integers),
    "Reshape": shapes.reshape,
    "ScatterNd": replicate_operands,
    "Split": shapes.split(axis=0, value=1),
    "SplitV": shapes.split(axis=2, value=0),
    "StridedSlice": slices.strided_slice,
    "StridedSliceGrad": slices.strided_slice_grad,
    "Transpose": shapes.transpose,
    "TruncatedNormal": random_numbers.stateless(random_numbers.truncated_normal),
    "Unpack": shapes.unpack,
}
