"""Counts the floating-point operations of a traced step: matrix multiplications and convolutions.

A multiplication and an addition count as two. Element-wise additions, scaling and lookups are not
counted, as is usual for utilization figures (Chowdhery et al., "PaLM", 2022, appendix B,
https://arxiv.org/abs/2204.02311). The graph has the forward and the backward pass, and
recomputation (`keras.remat`) counts twice.

Unknown shapes in a trace, such as the rows of a batch, are inferred by TensorFlow from an observed
batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Shape = Sequence[int | None] | None


@dataclass(frozen=True)
class Flops:
    """The operations of one call of a step.

    Attributes:
        count: of the operations whose shapes are known.
        unknown: multiplying operations with unknown shapes or an unknown number of calls (loops),
            by type.
    """

    count: float
    unknown: tuple[str, ...] = ()


_CALLS = frozenset(
    {
        *("If", "StatelessIf", "While", "StatelessWhile"),
        *("PartitionedCall", "StatefulPartitionedCall"),
    }
)
_OPAQUE = ("CudnnRNN", "CudnnRNNV2", "CudnnRNNV3", "CudnnRNNBackprop", "CudnnRNNBackpropV3")


def of_step(function: Any, batch: Any) -> Flops:
    """Counts those of one step on all devices of this process.

    Args:
        function: the `tf.function` of a step, which has been traced for `batch`.
        batch: its argument.
    """
    import tensorflow as tf

    concrete = function.get_concrete_function(batch)
    leaves = tf.nest.flatten(batch, expand_composites=True)
    tensors = [leaf for leaf in leaves if isinstance(leaf, tf.Tensor)]
    shapes = {
        placeholder.op.name: tuple(tensor.shape)
        for placeholder, tensor in zip(concrete.inputs, tensors, strict=False)
    }
    return of_graph(concrete.graph, shapes)


def of_step_or_why(function: Any, batch: Any) -> tuple[float | None, str]:
    """Those of one step, or why they are not known.

    Args:
        function: as for `of_step`, or None.
        batch: its argument, or None if none was observed.
    """
    if function is None or batch is None:
        return None, "the step is not one function of TensorFlow that takes a batch"
    flops = of_step(function, batch)
    if flops.unknown:
        return None, f"the sizes in {', '.join(flops.unknown)} are not known from the graph"
    return flops.count, ""


def of_graph(traced: Any, shapes: Mapping[str, Sequence[int]]) -> Flops:
    """Counts those of a graph.

    Args:
        traced: the graph of one step.
        shapes: of its placeholders, by name.
    """
    import tensorflow as tf

    graph_def = traced.as_graph_def()
    for node in graph_def.node:
        node.attr.pop("_output_shapes", None)
        if node.op == "Placeholder" and node.name in shapes:
            _make_placeholder(node, shapes[node.name])
    _without_variables(graph_def, traced)
    products = {
        function.signature.name
        for function in graph_def.library.function
        if any(node.op in _COUNTS for node in function.node_def)
    }
    graph = tf.Graph()
    with graph.as_default():
        tf.graph_util.import_graph_def(graph_def, name="")
    count, unknown = 0.0, set[str]()
    for op in graph.get_operations():
        if op.type in _OPAQUE or (op.type in _CALLS and _called(op) & products):
            unknown.add(op.type)
        elif op.type in _COUNTS:
            operations = _COUNTS[op.type](op)
            if operations is None:
                unknown.add(op.type)
            else:
                count += operations
    return Flops(count, tuple(sorted(unknown)))


def _make_placeholder(node: Any, shape: Sequence[int | None]) -> None:
    import tensorflow as tf

    node.attr["shape"].shape.CopyFrom(tf.TensorShape(shape).as_proto())


def _without_variables(graph_def: Any, traced: Any) -> None:
    """Replaces reads of variables with placeholders.

    An imported graph has lost the shapes of variables; the traced one knows them.
    """
    tables = []
    for node in graph_def.node:
        if node.op not in ("ReadVariableOp", "ResourceGather"):
            continue
        op = traced.get_operation_by_name(node.name)
        shape, dtype = op.outputs[0].shape, node.attr["dtype"].type
        if node.op == "ReadVariableOp":
            del node.input[:]
            node.op = "Placeholder"
            node.attr.clear()
            node.attr["dtype"].type = dtype
            _make_placeholder(node, shape)
        elif shape.rank is not None and op.inputs[1].shape.rank is not None:
            table = type(node)(name=f"{node.name}/table", op="Placeholder")
            table.attr["dtype"].type = dtype
            _make_placeholder(table, [None, *shape[op.inputs[1].shape.rank :]])
            tables.append(table)
            indices = node.attr["Tindices"].type
            del node.input[0]
            node.input.insert(0, table.name)
            node.op = "Gather"
            node.attr.clear()
            node.attr["Tparams"].type, node.attr["Tindices"].type = dtype, indices
    graph_def.node.extend(tables)


def _called(op: Any) -> set[str]:
    attrs = op.node_def.attr.values()
    return {attr.func.name for attr in attrs if attr.HasField("func")}


def _elements(tensor: Any) -> float | None:
    elements = tensor.shape.num_elements()
    return None if elements is None else float(elements)


def _twice(*factors: float | None) -> float | None:
    """A multiplication and an addition for each."""
    known = [f for f in factors if f is not None]
    return 2.0 * math.prod(known) if len(known) == len(factors) else None


def _size(tensor: Any, axis: int) -> float | None:
    shape = tensor.shape
    if shape.rank is None:
        return None
    size = shape[axis]
    return None if size is None else float(size)


def _mat_mul(op: Any) -> float | None:
    axis = 0 if op.get_attr("transpose_a") else 1
    return _twice(_elements(op.outputs[0]), _size(op.inputs[0], axis))


def _batch_mat_mul(op: Any) -> float | None:
    axis = -2 if op.get_attr("adj_x") else -1
    return _twice(_elements(op.outputs[0]), _size(op.inputs[0], axis))


def _einsum(op: Any) -> float | None:
    """The product of the sizes of all of its letters."""
    equation = op.get_attr("equation").decode()
    if "." in equation:
        return None
    sizes: dict[str, float | None] = {}
    for labels, tensor in zip(equation.partition("->")[0].split(","), op.inputs, strict=True):
        for axis, label in enumerate(labels):
            size = _size(tensor, axis)
            sizes[label] = size if size is not None else sizes.get(label)
    return 0.0 if len(op.inputs) < 2 else _twice(*sizes.values())


def _convolution(output: int, filters: int) -> Callable[[Any], float | None]:
    """Each element of the output is a sum over a filter's elements for one output channel.

    Args:
        output: which input of the operation has the output's shape; -1 for its own output.
        filters: which has the filter's; -1 for the operation's output.
    """

    def count(op: Any) -> float | None:
        out = op.outputs[0] if output < 0 else op.inputs[output]
        kernel = op.outputs[0] if filters < 0 else op.inputs[filters]
        channels = _size(kernel, -1)
        elements, of_kernel = _elements(out), _elements(kernel)
        if not channels or of_kernel is None:
            return None
        return _twice(elements, of_kernel / channels)

    return count


def _depthwise(output: int, filters: int) -> Callable[[Any], float | None]:
    """Each element of the output is a sum over height and width of a filter."""

    def count(op: Any) -> float | None:
        out = op.outputs[0] if output < 0 else op.inputs[output]
        kernel = op.outputs[0] if filters < 0 else op.inputs[filters]
        return _twice(_elements(out), _size(kernel, 0), _size(kernel, 1))

    return count


_COUNTS: dict[str, Callable[[Any], float | None]] = {
    "MatMul": _mat_mul,
    "BatchMatMul": _batch_mat_mul,
    "BatchMatMulV2": _batch_mat_mul,
    "BatchMatMulV3": _batch_mat_mul,
    "Einsum": _einsum,
    "XlaEinsum": _einsum,
    "Conv2D": _convolution(-1, 1),
    "Conv2DBackpropInput": _convolution(2, 1),
    "Conv2DBackpropFilter": _convolution(2, -1),
    "Conv3D": _convolution(-1, 1),
    "Conv3DBackpropInputV2": _convolution(2, 1),
    "Conv3DBackpropFilterV2": _convolution(2, -1),
    "DepthwiseConv2dNative": _depthwise(-1, 1),
    "DepthwiseConv2dNativeBackpropInput": _depthwise(2, 1),
    "DepthwiseConv2dNativeBackpropFilter": _depthwise(2, -1),
}
