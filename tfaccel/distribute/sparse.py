"""Sparse gradients of replicas, as one device would have them.

The gradient of a lookup is an IndexedSlices with an entry for each row that was looked up. Keras's
optimizers square entries one by one, so their update of a row depends on how many entries it has. A
lookup by the batch's rows (token ids) has on one device the entries of all replicas, one after the
other, so they are concatenated. A lookup that does not depend on the rows, as the positions of a
text (`Embedding(arange(length))`), has on one device the same entries as on each replica, with the
gradient of the global batch: those are summed entry by entry.

The graph shows the kind of lookup: the indices of the latter come from constants and from sizes of
dimensions other than the first. A table that is looked up twice has the entries of both lookups in
one gradient, joined by a ConcatV2; each is treated separately. Eager tensors have no graph: there
the entries are compared over the replicas.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfaccel.distribute import step

_MAX_OPERATIONS = 500
_REPLICA_ID = "replica_id_in_sync_group"  # as TensorFlow names the constant in each replica


def split_sparse(
    grads: list[Any],
) -> tuple[list[Any], list[tf.Tensor], Callable[[list[Any], list[Any]], list[Any]]]:
    """Splits sparse gradients into those summed entry by entry and those concatenated.

    Args:
        grads: tensors, IndexedSlices or None.

    Returns:
        Values to reduce directly, one for each of `grads`; further tensors to sum; and a function
        that takes the sums of both and returns those of `grads`.
    """
    kept, dense_values = list(grads), list[tf.Tensor]()
    same: dict[int, list[tf.Tensor]] = {}
    for i, grad in enumerate(grads):
        if not isinstance(grad, tf.IndexedSlices) or step.current() is None:
            continue  # in a custom training loop each replica may run a different program
        lookups = _lookups(grad.indices)
        same_lookups = [_same_on_all(indices) for indices in lookups]
        if not any(same_lookups):
            continue
        sizes = [tf.size(indices) for indices in lookups]
        values = tf.split(grad.values, sizes) if len(sizes) > 1 else [grad.values]
        parts = list(zip(values, lookups, same_lookups, strict=True))
        dense_values += [v for v, _, is_same in parts if is_same]
        same[i] = [indices for _, indices, is_same in parts if is_same]
        kept[i] = _joined([(v, ids) for v, ids, is_same in parts if not is_same], grad)

    def rebuild(whole: list[Any], sums: list[Any]) -> list[Any]:
        rest, whole = iter(sums), list(whole)
        for i, lookups in same.items():
            of_rows = [] if whole[i] is None else [(whole[i].values, whole[i].indices)]
            whole[i] = _joined([*of_rows, *((next(rest), ids) for ids in lookups)], grads[i])
        return whole

    return kept, dense_values, rebuild


def _joined(parts: list[tuple[Any, Any]], like: tf.IndexedSlices) -> tf.IndexedSlices | None:
    if not parts:
        return None
    values, indices = zip(*parts, strict=True)
    if len(parts) == 1:
        return tf.IndexedSlices(values[0], indices[0], like.dense_shape)
    return tf.IndexedSlices(tf.concat(values, 0), tf.concat(indices, 0), like.dense_shape)


def _lookups(indices: tf.Tensor) -> list[tf.Tensor]:
    """The indices of each lookup whose gradients were joined."""
    if hasattr(indices, "numpy") or indices.op.type != "ConcatV2":
        return [indices]
    return list(indices.op.inputs)[:-1]


def _same_on_all(indices: tf.Tensor) -> bool:
    """Whether all replicas have looked up the same rows, independent of the batch."""
    if hasattr(indices, "numpy"):
        return _are_identical(indices)
    return _independent(indices) and not _repeats_by_rows(indices)


def _repeats_by_rows(indices: tf.Tensor) -> bool:
    """Whether constant indices are those of one row, once for each row of a batch of static size.

    There the number of rows is a constant of the graph too (`tile(range(5)[None], [rows, 1])`).
    """
    ctx, entries = step.current(), indices.shape.num_elements()
    rows = None if ctx is None else ctx.rows
    if not rows or not entries or entries % rows:
        return False
    values = _constant(indices)
    if values is None:
        return False
    blocks = values.reshape(rows, -1)
    return bool((blocks == blocks[0]).all())


def _constant(tensor: tf.Tensor) -> np.ndarray | None:
    """The value of a graph's tensor if it depends only on constants; else None."""
    if (value := tf.get_static_value(tensor)) is not None:
        return value  # type: ignore[no-any-return]
    nodes = tf.compat.v1.graph_util.extract_sub_graph(tensor.graph.as_graph_def(), [tensor.op.name])
    for node in nodes.node:
        node.device = ""
    with tf.Graph().as_default() as alone, tf.compat.v1.Session(graph=alone) as session:
        try:
            (constant,) = tf.graph_util.import_graph_def(
                nodes, return_elements=[tensor.name], name=""
            )
            return session.run(constant)  # type: ignore[no-any-return]
        except (tf.errors.OpError, ValueError):
            return None


def _are_identical(indices: tf.Tensor) -> bool:
    """Whether these are distinct and the same on all replicas, which run eagerly."""
    numbers = tf.cast(tf.reshape(indices, [-1]), tf.float64)
    entries = tf.cast(tf.size(numbers), tf.float64)
    distinct = tf.cast(tf.equal(tf.size(tf.unique(numbers)[0]), tf.size(numbers)), tf.float64)
    order = tf.range(1, tf.size(numbers) + 1)
    mixed = tf.reduce_sum(numbers * tf.cast(order, tf.float64))
    fingerprint = tf.stack([entries, tf.reduce_sum(numbers), mixed, distinct])
    replicas = tf.cast(step.all_reduce_sum(tf.ones([], tf.float64)), tf.float64)
    mean = step.all_reduce_sum(fingerprint) / replicas
    spread = step.all_reduce_sum(tf.square(fingerprint - mean))
    return bool(tf.reduce_max(spread) < 1e-6) and bool(mean[3] == 1)


def _independent(tensor: tf.Tensor) -> bool:
    """Whether a graph's tensor is independent of the batch's rows and their number."""
    waiting, seen = [tensor], set[int]()
    while waiting:
        tensor = waiting.pop()
        op = tensor.op
        if id(op) in seen:
            continue
        seen.add(id(op))
        if len(seen) > _MAX_OPERATIONS:
            return False
        if op.type == "Const" and _REPLICA_ID in op.name:
            return False
        if op.type in ("Const", "VarHandleOp"):
            continue
        if op.type in ("Placeholder", "PlaceholderWithDefault"):
            outer = _captured(tensor)
            if outer is None:
                return False
            if not hasattr(outer, "numpy"):
                waiting.append(outer)
            continue
        if op.type == "StridedSlice" and op.inputs[0].op.type == "Shape":
            if not _of_another_dimension(op):
                return False
            continue
        if op.type in ("Shape", "Size", "ShapeN") or "Random" in op.type or not op.inputs:
            if op.type not in ("Shape", "Size") or not op.inputs[0].shape.is_fully_defined():
                return False
            continue
        if op.type not in _PLAIN and not op.type.startswith("ReadVariable"):
            return False
        waiting += list(op.inputs)[:1] if op.type in _SHAPE_ONLY else list(op.inputs)
    return True


_SHAPE_ONLY = ("Reshape", "ExpandDims", "Squeeze")
_OPERATIONS = """
Add AddV2 Sub Mul FloorDiv FloorMod Neg Abs Maximum Minimum Sum Prod Max Min Floor Round
Less LessEqual Greater GreaterEqual Equal Select SelectV2 ClipByValue
Range LinSpace Fill ZerosLike OnesLike Cast Identity StopGradient PreventGradient EnsureShape
CheckNumerics Reshape ExpandDims Squeeze Pack ConcatV2 StridedSlice Slice GatherV2 Tile
BroadcastTo Transpose ReverseV2
"""
_PLAIN = frozenset(_OPERATIONS.split())


def _captured(placeholder: tf.Tensor) -> Any:
    """The outer tensor that a placeholder of a function's graph captures; None for an argument."""
    for outer, inner in getattr(placeholder.graph, "captures", ()):
        if inner is placeholder:
            return outer
    return None


def _of_another_dimension(op: Any) -> bool:
    """Whether a StridedSlice of a shape only reads sizes of dimensions other than the first."""
    begin, end = (tf.get_static_value(op.inputs[i]) for i in (1, 2))
    rank = op.inputs[0].op.inputs[0].shape.rank
    if begin is None or end is None or rank is None:
        return False
    begin_open, end_open = op.get_attr("begin_mask"), op.get_attr("end_mask")
    shrinks = op.get_attr("shrink_axis_mask")
    if begin_open or op.get_attr("ellipsis_mask") or op.get_attr("new_axis_mask"):
        return False
    if shrinks:
        return bool(begin[0] % rank >= 1)
    last = rank if end_open else int(end[0])
    return bool(begin[0] % rank >= 1 and (last > 0 or last < 0))
