"""Which results of a step XLA's fusion keeps out of a TPU's memory.

XLA computes chains of element-wise operations inside the operation that takes them, and a cheap one
again for each that does, instead of writing its result to memory: "fusion is XLA's single most
important optimization" (https://openxla.org/xla/tf2xla). Its rule, `InstructionFusion` in
xla/service/instruction_fusion.cc (https://github.com/openxla/xla), fuses a producer into its users
and duplicates one with several users only if it is not expensive (`IsExpensive`: exponentials,
divisions, roots and so on). How the TPU's compiler weighs it is not published; here a result with
several users is computed again where its operands are not larger than itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from tfaccel.planner.liveness import ALIASES
from tfaccel.planner.steps import Operation, Step

# Results that are their operand in another form: of its layout, or repeated.
_FORMS = (ALIASES - {"ReadVariableOp"}) | {"Transpose", "ConjugateTranspose"}
_CHEAP = frozenset(
    {
        *("Add", "AddV2", "AddN", "Sub", "Mul", "Maximum", "Minimum", "SquaredDifference", "Neg"),
        *("Abs", "Square", "Sign", "Floor", "Ceil", "Round", "MulNoNan", "BiasAdd", "Cast"),
        *("Relu", "Relu6", "LeakyRelu", "ReluGrad", "Relu6Grad", "LeakyReluGrad", "ClipByValue"),
        *("Select", "SelectV2", "LogicalAnd", "LogicalOr", "LogicalNot", "ZerosLike", "OnesLike"),
        *("Equal", "NotEqual", "Less", "LessEqual", "Greater", "GreaterEqual", "BroadcastTo"),
        *("Fill", "Tile", "Range", "OneHot", "MatrixBandPart"),
    }
)
_EXPENSIVE = frozenset(
    {
        *("RealDiv", "Div", "DivNoNan", "Pow", "FloorDiv", "FloorMod", "Xdivy", "Xlogy", "Exp"),
        *("Expm1", "Log", "Log1p", "Sqrt", "Rsqrt", "Reciprocal", "Tanh", "Sigmoid", "Erf", "Sin"),
        *("Cos", "Softplus", "Softsign", "Elu", "Selu", "TanhGrad", "SigmoidGrad", "RsqrtGrad"),
        *("SqrtGrad", "ReciprocalGrad", "EluGrad", "SeluGrad", "SoftplusGrad", "SoftsignGrad"),
    }
)
# What else takes a chain of its operands into itself.
_TAKING = frozenset(
    {
        *("Sum", "Mean", "Max", "Min", "Prod", "All", "Any", "ArgMax", "BiasAddGrad"),
        *("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "Einsum", "Conv2D"),
        *("Conv2DBackpropInput", "Conv2DBackpropFilter", "DepthwiseConv2dNative", "Conv3D"),
        *("DepthwiseConv2dNativeBackpropInput", "DepthwiseConv2dNativeBackpropFilter"),
        *("AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp", "ResourceApplyAdam"),
    }
)
_FUSING = _CHEAP | _EXPENSIVE | _TAKING
_SMALL = 8  # an operand of an eighth of a result or less, such as a bias, is no reason to keep it


def fused(step: Step, sizes: Sequence[int]) -> tuple[Step, list[int]]:
    """A step in which operations take what fused results are computed from.

    Args:
        step: as TensorFlow runs it.
        sizes: bytes of each value.

    Returns:
        The step with other operands, and the sizes with 0 for what takes no memory.
    """
    kept = {*step.arguments, *step.results, *step.gradients.values(), *step.copies}
    users: list[list[Operation]] = [[] for _ in step.values]
    for op in step.operations:
        for value in op.inputs:
            users[value].append(op)
    sources: list[tuple[int, ...]] = [(value,) for value in range(len(step.values))]
    found, operations = list(sizes), []
    for op in step.operations:
        inputs = tuple(dict.fromkeys(s for value in op.inputs for s in sources[value]))
        operations.append(replace(op, inputs=inputs))
        for output in op.outputs:
            if output in kept or not _is_fused(op, output, inputs, sizes, users, kept):
                continue
            sources[output], found[output] = inputs, 0
    return replace(step, operations=tuple(operations)), found


def _is_fused(
    op: Operation,
    output: int,
    inputs: Sequence[int],
    sizes: Sequence[int],
    users: Sequence[Sequence[Operation]],
    kept: set[int],
) -> bool:
    if op.variable is not None or not inputs:
        return False
    if op.kind in _FORMS:
        return True
    if op.kind not in _CHEAP | _EXPENSIVE:
        return False
    takers = list(_takers(output, users, kept))
    if not all(taker is not None and taker.kind in _FUSING for taker in takers):
        return False
    if len(takers) == 1:
        return True
    large = [sizes[v] for v in inputs if sizes[v] * _SMALL > sizes[output]]
    return op.kind in _CHEAP and sum(large) <= sizes[output]


def _takers(
    value: int, users: Sequence[Sequence[Operation]], kept: set[int]
) -> Iterator[Operation | None]:
    """The operations that take a value in any form; None for one that must be in memory."""
    for op in users[value]:
        if op.kind not in _FORMS or op.variable is not None:
            yield op
            continue
        for output in op.outputs:
            if output in kept:
                yield None
            yield from _takers(output, users, kept)
