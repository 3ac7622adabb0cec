"""The work of an operation: floating-point operations, and bytes of its operands."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tfaccel.planner.liveness import ALIASES
from tfaccel.planner.steps import Operation

Shape = tuple[int, ...] | None
_PRODUCTS = ("MatMul", "BatchMatMul", "Einsum", "Conv2D", "Conv3D", "DepthwiseConv2d")
_NOTHING = ALIASES | {"Const", "Placeholder", "NoOp", "Shape", "VarHandleOp", "Assert"}


def flops(op: Operation, shapes: Sequence[Shape]) -> int:
    """Floating-point operations: 2 for a multiplication and an addition, 1 for each other element.

    Args:
        op: of a step.
        shapes: of the step's values; a product or convolution with an unknown one counts 0.

    A convolution's are 2 x outputs x filter elements of one output channel, and the same for each
    of its two gradients.
    """
    ins = [shapes[v] or () for v in op.inputs]
    outs = [shapes[v] or () for v in op.outputs]
    if op.kind in _NOTHING or not outs:
        return 0
    unknown = any(shapes[v] is None for v in (*op.inputs, *op.outputs))
    if unknown and op.kind.startswith(_PRODUCTS):
        return 0
    if op.kind in ("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"):
        flipped = op.attributes.get("transpose_a", op.attributes.get("adj_x", False))
        return 2 * math.prod(outs[0]) * ins[0][-2 if flipped else -1]
    if op.kind == "Einsum":
        return _einsum(op, ins)
    if op.kind in ("Conv2D", "Conv3D"):
        return 2 * math.prod(outs[0]) * math.prod(ins[1][:-1])
    if op.kind in ("Conv2DBackpropInput", "Conv3DBackpropInputV2"):
        return 2 * math.prod(ins[2]) * math.prod(ins[1][:-1])
    if op.kind in ("Conv2DBackpropFilter", "Conv3DBackpropFilterV2"):
        return 2 * math.prod(ins[2]) * math.prod(outs[0][:-1])
    if op.kind == "DepthwiseConv2dNative":
        return 2 * math.prod(outs[0]) * math.prod(ins[1][:2])
    if op.kind == "DepthwiseConv2dNativeBackpropInput":
        return 2 * math.prod(ins[2]) * math.prod(ins[1][:2])
    if op.kind == "DepthwiseConv2dNativeBackpropFilter":
        return 2 * math.prod(ins[2]) * math.prod(outs[0][:2])
    return max(math.prod(shape) for shape in (*ins, *outs))


def moves(op: Operation) -> bool:
    """Whether an operation reads and writes memory: each operand and result once."""
    return op.kind not in _NOTHING


def _einsum(op: Operation, ins: Sequence[tuple[int, ...]]) -> int:
    equation = op.attributes["equation"]
    equation = equation.decode() if isinstance(equation, bytes) else equation
    sizes: dict[str, int] = {}
    for term, shape in zip(
        equation.replace(" ", "").partition("->")[0].split(","), ins, strict=True
    ):
        before, dots, after = term.partition("...")
        hidden = len(shape) - len(before) - len(after) if dots else 0
        letters = [*before, *(f".{k}" for k in range(hidden, 0, -1)), *after]
        for letter, size in zip(letters, shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return (2 if len(ins) > 1 else 1) * math.prod(sizes.values())
