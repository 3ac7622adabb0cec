"""How a step's values are divided over the model axis of a mesh, and the communication.

Rows are already divided: the step is that of one part of the batch. What remains is which dimension
of a value the model axis divides, which follows from the layouts of variables, operation by
operation, as in Megatron-LM and GSPMD (https://arxiv.org/abs/2105.04663). A product over a divided
dimension is summed over the devices of the axis (an all-reduce of its result); an operation that
needs a dimension whole has it gathered first. An unknown operation gets whole operands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tfaccel.distribute.model_parallel.auto_layout import einsum_terms
from tfaccel.planner.liveness import IN_PLACE
from tfaccel.planner.steps import Operation, Step

Shape = tuple[int, ...] | None
_ELEMENTWISE = IN_PLACE | {
    *("Identity", "StopGradient", "Cast", "ReluGrad", "GreaterEqual", "Greater"),
    *("Less", "LessEqual", "Equal", "NotEqual", "ZerosLike", "OnesLike", "Inv", "IsFinite"),
    *("PreventGradient", "Snapshot", "CheckNumerics", "EnsureShape", "Erfc", "IsNan"),
}
_ELEMENTWISE -= {"Softmax", "LogSoftmax", "MatrixBandPart", "BiasAdd", "AssignVariableOp"}
_REDUCTIONS = frozenset({"Sum", "Mean", "Max", "Min", "Prod", "All", "Any"})
# Without a divisible result. Assigned values are laid out like their variable.
_FREE = frozenset(
    {
        *("Shape", "Const", "NoOp", "VarHandleOp", "Placeholder", "Rank", "Size"),
        *("AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp", "ResourceApplyAdam"),
    }
)


@dataclass
class Spread:
    """The position of the model axis in each value.

    Attributes:
        dims: the dimension of each value that it divides, or None.
        reduced: bytes that all-reduces over it sum on each device, by operation.
        gathered: bytes of the results of all-gathers over it, by operation.
    """

    dims: list[int | None]
    reduced: dict[int, int] = field(default_factory=dict)
    gathered: dict[int, int] = field(default_factory=dict)


def spread(
    step: Step, shapes: Sequence[Shape], devices: int, variables: Mapping[int, int | None]
) -> Spread:
    """Follows the model axis through a step.

    Args:
        step: of one part of the batch.
        shapes: of its values.
        devices: of the model axis.
        variables: the dimension of each variable that the axis divides while layers compute.
    """
    found = Spread([None] * len(step.values))
    if devices == 1:
        return found
    for i, op in enumerate(step.operations):
        if op.kind == "ReadVariableOp" and op.variable is not None:
            found.dims[op.outputs[0]] = variables.get(op.variable)
            continue
        given = [found.dims[v] for v in op.inputs]
        if op.variable is not None and op.kind == "ResourceGather":
            given[0] = variables.get(op.variable)
        if op.kind in _FREE or all(d is None for d in given):
            continue
        rule = _rule(op.kind)
        answer = rule(op, given, [shapes[v] for v in op.inputs], [shapes[v] for v in op.outputs])
        dims, whole, summed = answer
        for k in whole:  # operands that must be whole
            value = op.inputs[k]
            found.gathered[i] = found.gathered.get(i, 0) + _bytes(step, shapes, value)
        for output, dim in zip(op.outputs, dims, strict=True):
            shape = shapes[output]
            if dim is not None and (
                shape is None or not 0 <= dim < len(shape) or shape[dim] % devices
            ):
                dim = None
            found.dims[output] = dim
            if summed:
                size = _bytes(step, shapes, output)
                found.reduced[i] = found.reduced.get(i, 0) + size // (
                    devices if dim is not None else 1
                )
    return found


_Answer = tuple[list[int | None], list[int], bool]
_Rule = Callable[[Operation, list[int | None], list[Shape], list[Shape]], _Answer]


def _bytes(step: Step, shapes: Sequence[Shape], value: int) -> int:
    return math.prod(shapes[value] or (0,)) * step.values[value].width


def _whole(
    op: Operation, given: list[int | None], shapes: list[Shape], out: list[Shape]
) -> _Answer:
    return [None] * len(out), [k for k, d in enumerate(given) if d is not None], False


def _elementwise(
    op: Operation, given: list[int | None], shapes: list[Shape], out: list[Shape]
) -> _Answer:
    rank = len(out[0] or ())
    wanted: int | None = None
    whole = []
    for k, (dim, shape) in enumerate(zip(given, shapes, strict=True)):
        if dim is None or shape is None:
            continue
        at = dim + rank - len(shape)
        if wanted is None:
            wanted = at
        elif at != wanted:
            whole.append(k)
    return [wanted] * len(out), whole, False


def _matmul(
    op: Operation, given: list[int | None], shapes: list[Shape], out: list[Shape]
) -> _Answer:
    a, b = given[:2]
    rank_a, rank_b, rank = len(shapes[0] or ()), len(shapes[1] or ()), len(out[0] or ())
    flip_a = op.attributes.get("transpose_a", op.attributes.get("adj_x", False))
    flip_b = op.attributes.get("transpose_b", op.attributes.get("adj_y", False))
    row_a, sum_a = (rank_a - 1, rank_a - 2) if flip_a else (rank_a - 2, rank_a - 1)
    sum_b, col_b = (rank_b - 1, rank_b - 2) if flip_b else (rank_b - 2, rank_b - 1)

    def placed(dim: int, rank_in: int, row: int, summed: int) -> str | int:
        if dim == summed:
            return "sum"
        return "free" if dim == row else dim + rank - rank_in

    at_a = None if a is None else placed(a, rank_a, row_a, sum_a)
    at_b = None if b is None else placed(b, rank_b, col_b, sum_b)
    if at_a is not None and at_b is not None and at_a != at_b:
        # One axis cannot divide two things: the second operand is gathered.
        at_b = None
        return [_product(at_a, at_b, rank)], [1], at_a == "sum"
    if at_a == "free" and at_b == "free":
        return [rank - 2], [1], False
    return [_product(at_a, at_b, rank)], [], "sum" in (at_a, at_b)


def _product(a: str | int | None, b: str | int | None, rank: int) -> int | None:
    if a == "free":
        return rank - 2
    if b == "free":
        return rank - 1
    batch = [x for x in (a, b) if isinstance(x, int)]
    return batch[0] if batch else None


def _einsum(
    op: Operation, given: list[int | None], shapes: list[Shape], out: list[Shape]
) -> _Answer:
    equation = op.attributes["equation"]
    equation = equation.decode() if isinstance(equation, bytes) else equation
    if "..." in equation:
        return _whole(op, given, shapes, out)
    first, second, result = einsum_terms(equation)
    letters: list[str] = []
    whole = []
    for k, (dim, terms) in enumerate(zip(given, (first, second), strict=False)):
        if dim is None:
            continue
        if letters and terms[dim] not in letters:
            whole.append(k)
        else:
            letters.append(terms[dim])
    letter = letters[0]
    return [result.index(letter) if letter in result else None], whole, letter not in result


def _transpose(
    op: Operation, given: list[int | None], shapes: list[Shape], out: list[Shape]
) -> _Answer:
    order = op.attributes.get("axes")
    if order is None or given[0] is None:
        return _whole(op, given, shapes, out)
    return [order.index(given[0])], [], False


def _reduction(
    op: Operation, given: list[int | None], shapes: list[Shape], out: list[Shape]
) -> _Answer:
    axes, dim, shape = op.attributes.get("axes"), given[0], shapes[0]
    if dim is None or shape is None or out[0] is None:
        return _whole(op, given, shapes, out)
    if axes is None:
        # The gradient of a broadcast: it sums the added leading dimensions.
        added = len(shape) - len(out[0])
        if shape[added:] != out[0]:
            return _whole(op, given, shapes, out)
        axes = tuple(range(added))
    reduced = {axis % len(shape) for axis in axes}
    if dim in reduced:
        return [None], [], True
    if op.attributes.get("keep_dims"):
        return [dim], [], False
    return [dim - sum(axis < dim for axis in reduced)], [], False


def _reshape(
    op: Operation, given: list[int | None], shapes: list[Shape], out: list[Shape]
) -> _Answer:
    """The axis stays with the dimension whose slices are contiguous in both shapes."""
    dim, old, new = given[0], shapes[0], out[0]
    if dim is None or old is None or new is None:
        return _whole(op, given, shapes, out)
    before = math.prod(old[:dim])
    at = 1
    for k, size in enumerate(new):
        if at == before and size > 1:
            return [k], [], False
        at *= size
    return _whole(op, given, shapes, out)


def _last_whole(
    op: Operation, given: list[int | None], shapes: list[Shape], out: list[Shape]
) -> _Answer:
    """Operations along the last dimension: softmax and its losses."""
    dim, shape = given[0], shapes[0]
    if dim is None or shape is None or dim == len(shape) - 1:
        return _whole(op, given, shapes, out)
    return [dim if o is not None and len(o) > dim else None for o in out], [], False


def _bias(op: Operation, given: list[int | None], shapes: list[Shape], out: list[Shape]) -> _Answer:
    rank = len(out[0] or ())
    value, bias = given[:2]
    last = rank - 1 if bias is not None else None
    if value is not None and last is not None and value != last:
        return [value], [1], False
    return [value if value is not None else last], [], False


def _bias_grad(
    op: Operation, given: list[int | None], shapes: list[Shape], out: list[Shape]
) -> _Answer:
    if given[0] == len(shapes[0] or ()) - 1:
        return [0], [], False
    return [None], [], True


def _gather(
    op: Operation, given: list[int | None], shapes: list[Shape], out: list[Shape]
) -> _Answer:
    """Rows of a table: if divided over rows, each device has some; results are summed."""
    table, result = given[0], out[0]
    if table is None or result is None or (shapes[0] is None and op.kind != "ResourceGather"):
        return _whole(op, given, shapes, out)
    if table == 0:
        return [None], [], True
    return [len(result) - 1], [], False


_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"), _matmul),
    **dict.fromkeys(_REDUCTIONS, _reduction),
    **dict.fromkeys(("Reshape", "Squeeze", "ExpandDims"), _reshape),
    **dict.fromkeys(("Softmax", "LogSoftmax", "SparseSoftmaxCrossEntropyWithLogits"), _last_whole),
    **dict.fromkeys(("GatherV2", "ResourceGather"), _gather),
    "Einsum": _einsum,
    "Transpose": _transpose,
    "BiasAdd": _bias,
    "BiasAddGrad": _bias_grad,
}


def _rule(kind: str) -> _Rule:
    return _RULES.get(kind, _whole)
