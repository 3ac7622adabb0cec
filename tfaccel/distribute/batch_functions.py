"""Whether a function of a batch computes each row from that row alone, by its operations.

Such a function gives a worker's own rows what it gives them among others: to the bit, but for the
last one of functions like `exp`, which TensorFlow computes in another way at the end of a tensor.
Only operations that handle each row by itself are known here, and no matrix product, which may sum
in another order for fewer rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfaccel.distribute import _private
from tfaccel.distribute.row_functions import why_not_row_by_row

# What a tensor has: rows as its first dimension; the same value for any rows; or what follows from
# the number of rows.
_ROWS, _FIXED, _SIZES = "rows", "fixed", "sizes"
_BY_ELEMENT = frozenset(
    {
        *("Identity", "StopGradient", "Cast", "Neg", "Abs", "Sign", "Square", "Sqrt", "Rsqrt"),
        *("Exp", "Expm1", "Log", "Log1p", "Sigmoid", "Tanh", "Relu", "Relu6", "Erf", "Sin", "Cos"),
        *("Round", "Floor", "Ceil", "Rint", "IsNan", "IsInf", "IsFinite", "LogicalNot", "Invert"),
        *("Add", "AddV2", "Sub", "Mul", "Div", "RealDiv", "DivNoNan", "FloorDiv", "FloorMod"),
        *("Mod", "TruncateDiv", "TruncateMod", "Maximum", "Minimum", "Pow", "SquaredDifference"),
        *("Equal", "NotEqual", "Less", "LessEqual", "Greater", "GreaterEqual", "LogicalAnd"),
        *("LogicalOr", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "LeftShift", "RightShift"),
        *("SelectV2", "ClipByValue", "OnesLike", "ZerosLike", "AddN", "Bucketize"),
        *("StringLower", "StringUpper", "StringStrip", "StringLength", "StringToNumber"),
        *("StringToHashBucketFast", "StringToHashBucketStrong", "AsString", "StaticRegexReplace"),
        *("StaticRegexFullMatch", "RegexReplace", "RegexFullMatch", "LookupTableFindV2"),
    }
)
# Of images, which are rows: everything but the first operand is the same for all.
_BY_IMAGE = frozenset(
    {
        *("ResizeBilinear", "ResizeNearestNeighbor", "ResizeBicubic", "ResizeArea"),
        *("RGBToHSV", "HSVToRGB", "AdjustContrastv2", "AdjustHue", "AdjustSaturation"),
    }
)
_REDUCE = frozenset({"Sum", "Mean", "Max", "Min", "Prod", "Any", "All", "ArgMax", "ArgMin"})
# Operands that name dimensions.
_AXES = {
    **dict.fromkeys(_REDUCE, 1),
    **dict.fromkeys(("ExpandDims", "ReverseV2", "Cumsum", "Cumprod"), 1),
    "ConcatV2": -1,
    "SplitV": 2,
    "Split": 0,
}
_CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})


class _NotByRow(Exception):  # noqa: N818
    """Names an operation that may take rows together."""


def why_not_by_row(function: _private.MapFunction, given: Any) -> str:
    """Why a map of batches must run over whole batches; empty when it need not.

    Args:
        function: of the map.
        given: the structure of what it takes.
    """
    if why := why_not_row_by_row(function, given):
        return why
    leaves = [*tf.nest.flatten(given), *tf.nest.flatten(function.output)]
    if any(leaf.shape.rank in (None, 0) or leaf.shape[0] is not None for leaf in leaves):
        return "its batches have a fixed number of rows, as with drop_remainder=True, or none"
    try:
        results = _results(function.graph, [_ROWS] * len(tf.nest.flatten(given)))
    except _NotByRow as reason:
        return f"{reason} in it may take the rows of a batch together"
    if any(kind != _ROWS for kind in results):
        return "not all that it gives is computed row by row"
    return ""


def _results(graph: Any, given: Sequence[str]) -> list[str]:
    """What the results of a function have.

    Args:
        graph: of the function.
        given: what its inputs have; captured ones, which follow, are the same for any rows.
    """
    kinds: dict[str, str] = {}
    inside = [*given, *[_FIXED] * (len(graph.inputs) - len(given))]
    kinds.update({t.name: kind for t, kind in zip(graph.inputs, inside, strict=True)})
    for op in graph.get_operations():
        if op.outputs and op.outputs[0].name in kinds:
            continue
        made = _of_operation(op, [kinds[t.name] for t in op.inputs], graph)
        kinds.update({t.name: kind for t, kind in zip(op.outputs, made, strict=True)})
    return [kinds[t.name] for t in graph.outputs]


def _of_operation(op: Any, given: Sequence[str], graph: Any) -> Sequence[str]:
    if op.type in _CALLS:
        called = _private.function_graph(graph, op.get_attr("f").name)
        return _results(called, given)
    if not op.outputs:
        return ()  # an assertion
    if op.type == "Rank" or all(kind == _FIXED for kind in given):
        return [_FIXED] * len(op.outputs)
    if op.type in ("Shape", "Size", "ShapeN"):
        return [_SIZES] * len(op.outputs)
    if _ROWS not in given:
        return [_FIXED if _is_of_each_row(op) else _SIZES] * len(op.outputs)
    if not _keeps_rows(op, given):
        raise _NotByRow(op.type)
    return [_ROWS] * len(op.outputs)


def _is_of_each_row(op: Any) -> bool:
    """Whether an operation takes sizes of each row from the shape of a batch."""
    if op.type != "StridedSlice" or op.inputs[0].op.type != "Shape":
        return False
    rank, begins = op.inputs[0].op.inputs[0].shape.rank, tf.get_static_value(op.inputs[1])
    if not rank or begins is None or op.get_attr("begin_mask") & 1:
        return False
    strides = tf.get_static_value(op.inputs[3])
    return strides is not None and bool(strides[0] > 0 and begins[0] % rank > 0)


def _keeps_rows(op: Any, given: Sequence[str]) -> bool:
    """Whether each row of an operation's results is that of the operands that have rows."""
    if op.type == "Reshape":
        return given[0] == _ROWS and _keeps_first(op)
    if _SIZES in given:
        return False
    if op.type in _BY_ELEMENT:
        return _is_aligned(op, given)
    rule = _RULES.get(op.type)
    others_are_fixed = all(kind == _FIXED for kind in given[1:])
    if op.type in _BY_IMAGE:
        return given[0] == _ROWS and others_are_fixed and op.inputs[0].shape.rank == 4
    return rule is not None and bool(rule(op, given))


def _is_aligned(op: Any, given: Sequence[str]) -> bool:
    """Whether operands with rows are of one rank, and others are repeated for each row."""
    ranks = {t.shape.rank for t, kind in zip(op.inputs, given, strict=True) if kind == _ROWS}
    if len(ranks) != 1 or None in ranks:
        return False
    (rank,) = ranks
    if op.outputs[0].shape.rank != rank:
        return False
    for tensor, kind in zip(op.inputs, given, strict=True):
        if kind == _ROWS or tensor.dtype == tf.resource:
            continue
        own = tensor.shape.rank
        if own is None or own > rank or (own == rank and tensor.shape[0] != 1):
            return False
    return True


def _keeps_first(op: Any) -> bool:
    """Whether a reshape leaves the first dimension as it is, for any number of rows."""
    value, result = op.inputs[0].shape, op.outputs[0].shape
    if value.rank in (None, 0) or result.rank in (None, 0):
        return False
    fixed = tf.get_static_value(op.inputs[1])
    if fixed is not None and fixed[0] != -1:
        return False
    rest = [shape[1:] for shape in (value, result)]
    if not all(shape.is_fully_defined() for shape in rest):
        return False
    return bool(math.prod(rest[0].as_list()) == math.prod(rest[1].as_list()))


def _axes(op: Any) -> list[int] | None:
    """The dimensions that an operation names, of its results where it adds one; None if unknown."""
    known = tf.get_static_value(op.inputs[_AXES[op.type]])
    value = op.inputs[1 if op.type == "Split" else 0]
    if op.type in ("ExpandDims", "ConcatV2"):
        value = op.outputs[0]
    if known is None or value.shape.rank is None:
        return None
    return [int(axis) % value.shape.rank for axis in known.ravel()]


def _along_others(op: Any, given: Sequence[str]) -> bool:
    """Whether an operation works along other dimensions than the rows."""
    at, axes = _AXES[op.type] % len(op.inputs), _axes(op)
    values = given[:1] if op.type == "SplitV" else [*given[:at], *given[at + 1 :]]
    return axes is not None and 0 not in axes and set(values) == {_ROWS}


def _pack(op: Any, given: Sequence[str]) -> bool:
    rank = op.outputs[0].shape.rank
    return rank is not None and op.get_attr("axis") % rank > 0 and set(given) == {_ROWS}


def _unpack(op: Any, given: Sequence[str]) -> bool:
    rank = op.inputs[0].shape.rank
    return rank is not None and op.get_attr("axis") % rank > 0


def _one_hot(op: Any, given: Sequence[str]) -> bool:
    return given[0] == _ROWS and set(given[1:]) == {_FIXED} and op.get_attr("axis") != 0


def _squeeze(op: Any, given: Sequence[str]) -> bool:
    rank, dims = op.inputs[0].shape.rank, op.get_attr("squeeze_dims")
    return bool(dims) and rank is not None and all(dim % rank > 0 for dim in dims)


def _transpose(op: Any, given: Sequence[str]) -> bool:
    order = tf.get_static_value(op.inputs[1])
    return given[0] == _ROWS and order is not None and order[0] == 0


def _pad(op: Any, given: Sequence[str]) -> bool:
    sizes = tf.get_static_value(op.inputs[1])
    return given[0] == _ROWS and sizes is not None and not sizes[0].any()


def _tile(op: Any, given: Sequence[str]) -> bool:
    times = tf.get_static_value(op.inputs[1])
    return given[0] == _ROWS and times is not None and times[0] == 1


def _gather(op: Any, given: Sequence[str]) -> bool:
    axis = tf.get_static_value(op.inputs[2])
    if axis is None or op.get_attr("batch_dims"):
        return False
    if given[0] == _FIXED:  # a table of which rows take entries
        return given[1] == _ROWS and axis == 0
    rank = op.inputs[0].shape.rank
    return given[1] == _FIXED and rank is not None and axis % rank > 0


def _strided_slice(op: Any, given: Sequence[str]) -> bool:
    """Whether the first dimension is taken whole."""
    if given[0] != _ROWS or (op.get_attr("new_axis_mask") | op.get_attr("shrink_axis_mask")) & 1:
        return False
    begins = tf.get_static_value(op.inputs[1])
    if op.get_attr("ellipsis_mask") & 1:
        rank, new = op.inputs[0].shape.rank, op.get_attr("new_axis_mask")
        named = None if begins is None else len(begins) - 1 - bin(new).count("1")
        return rank is not None and named is not None and named < rank
    strides = tf.get_static_value(op.inputs[3])
    whole = op.get_attr("begin_mask") & op.get_attr("end_mask") & 1
    return bool(whole) and strides is not None and strides[0] == 1


def _slice(op: Any, given: Sequence[str]) -> bool:
    begins, sizes = (tf.get_static_value(t) for t in op.inputs[1:])
    if given[0] != _ROWS or begins is None or sizes is None:
        return False
    return bool(begins[0] == 0 and sizes[0] == -1)


_RULES: Mapping[str, Callable[[Any, Sequence[str]], bool]] = {
    **dict.fromkeys(_AXES, _along_others),
    **dict.fromkeys(("Pad", "PadV2", "MirrorPad"), _pad),
    "Pack": _pack,
    "Unpack": _unpack,
    "OneHot": _one_hot,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Tile": _tile,
    "GatherV2": _gather,
    "StridedSlice": _strided_slice,
    "Slice": _slice,
}
