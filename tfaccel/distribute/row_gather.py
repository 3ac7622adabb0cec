"""All-gathers the rows of the global batch, for results that its parts cannot combine to."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfaccel.distribute.step import (
    StepContext,
    all_reduce_sum,
    is_checking_unequal_rows,
    transport_dtype,
)
from tfaccel.errors import StrategyError


class RowBlock(NamedTuple):
    """Our block of rows among those of all replicas.

    Attributes:
        start: where it begins in the global batch.
        rows: how many it has (int32 scalars, as all here).
        total: how many the global batch has.
        padded: how many rows the replica's tensors have, including padding copies.
    """

    start: tf.Tensor
    rows: tf.Tensor
    total: tf.Tensor
    padded: tf.Tensor


def has_other_replicas() -> bool:
    """Whether there are other replicas with their own rows."""
    context = tf.distribute.get_replica_context()
    placement = getattr(getattr(context, "strategy", None), "placement", None)
    return placement is not None and placement.replicas > 1


def local_block(tensor: Any, ctx: StepContext) -> RowBlock:
    """Finds this replica's block among all; every replica must call.

    Args:
        tensor: with this replica's rows as its first dimension.
        ctx: this replica's part of the step; copies among the rows are left out.
    """
    return blocks_of([tensor], ctx)[0]


def blocks_of(tensors: list[Any], ctx: StepContext) -> list[RowBlock]:
    """Finds this replica's block of the rows of each tensor, in one message.

    Args:
        tensors: whose first dimensions are rows, of different numbers.
        ctx: as in `local_block`; with copies among the rows, all have the same number of rows.
    """
    placement = tf.distribute.get_strategy().placement
    padded = [tf.shape(tensor)[0] for tensor in tensors]
    row_counts = padded
    if ctx.real is not None:
        row_counts = [tf.reduce_sum(tf.cast(ctx.real, tf.int32))] * len(tensors)
    local = tf.one_hot(block_number(), placement.replicas, dtype=tf.int32)
    counts = all_reduce_sum(tf.stack([local * rows for rows in row_counts]))
    before = tf.range(placement.replicas) < block_number()
    return [
        RowBlock(tf.reduce_sum(tf.where(before, row, 0)), rows, tf.reduce_sum(row), most)
        for row, rows, most in zip(tf.unstack(counts), row_counts, padded, strict=True)
    ]


def block_number() -> Any:
    """The index of this replica's block: workers take blocks in turn (see `batch_sharding.py`)."""
    context = tf.distribute.get_replica_context()
    placement = context.strategy.placement
    local = context.replica_id_in_sync_group - placement.rank * placement.local
    return local * placement.workers + placement.rank


def gather_rows(values: Any, block: RowBlock, ctx: StepContext, *, shared: bool = True) -> Any:
    """Gathers each tensor of a nest over all replicas, in the order of the global batch's rows.

    Args:
        values: a nest of tensors with this replica's rows as their first dimension; None and
            numbers without rows are unchanged.
        block: this replica's rows among all.
        ctx: this replica's part of the step.
        shared: whether every replica computes the same number from the gathered rows, a loss. Then
            each knows its rows' part of the gradient locally, and divides it by its batch fraction,
            by which it will later be multiplied. Otherwise the gradients of all replicas are
            summed.

    Raises:
        StrategyError: for strings, ragged and sparse tensors.
    """
    flat = keras.tree.flatten(values)
    chosen = [i for i, v in enumerate(flat) if v is not None and _has_rows(v)]
    whole = iter(_all_gather([flat[i] for i in chosen], block, ctx, shared))
    flat = [next(whole) if i in chosen else v for i, v in enumerate(flat)]
    return keras.tree.pack_sequence_as(values, flat)


def local_rows(values: Any, block: RowBlock) -> Any:
    """Our rows of each gathered tensor of a nest, with their original number."""

    def own_rows(value: Any) -> Any:
        if value is None or not _has_rows(value):
            return value
        rows = value[block.start : block.start + block.rows]
        paddings = [[0, block.padded - block.rows]] + [[0, 0]] * (value.shape.rank - 1)
        return tf.pad(rows, paddings)

    return keras.tree.map_structure(own_rows, values)


def _has_rows(value: Any) -> bool:
    if not isinstance(value, tf.Tensor) or value.dtype == tf.string or value.shape.rank is None:
        kind = "strings" if value.dtype == tf.string else "a tensor of unknown rank"
        kind = kind if isinstance(value, tf.Tensor) else f"a {type(value).__name__}"
        raise StrategyError(
            f"tfaccel: what must see the global batch (a loss, or a layer or metric with a state) "
            f"was given {kind}; expected dense numbers, which replicas can give to each other; "
            "convert it in the model (`to_tensor()`, `keras.ops.convert_to_tensor`)."
        )
    return bool(value.shape.rank > 0)


def _all_gather(
    tensors: list[tf.Tensor], block: RowBlock, ctx: StepContext, shared: bool
) -> list[tf.Tensor]:
    if not tensors:
        return []
    others = block.total - block.start - block.rows

    def send(local: tf.Tensor) -> tf.Tensor:
        # A sum in which each row comes from one replica: all transports only share this collective.
        sides = [[block.start, others]] + [[0, 0]] * (local.shape.rank - 1)
        return tf.pad(tf.cast(local, transport_dtype(local.dtype)), sides)

    @tf.custom_gradient
    def gather(*local: tf.Tensor) -> Any:
        whole = _summed([send(t) for t in local])
        shaped = [_shaped(w, t, ctx) for w, t in zip(whole, local, strict=True)]

        def backward(*upstream: Any) -> list[tf.Tensor]:
            grads = list(upstream)
            if shared:
                local_grads = [g[block.start : block.start + block.rows] for g in grads]
                fraction = ctx.batch_fraction
                return [tf.math.divide_no_nan(g, tf.cast(fraction, g.dtype)) for g in local_grads]
            # A replica's loss is weighted by its batch fraction before its gradient is taken; or
            # its gradient afterwards, where some replica has no rows.
            later = ctx.has_empty_replicas and getattr(ctx, "gradients", None) is None
            parts = [ctx.weight(g) if later else g for g in grads]
            summed = _summed([tf.cast(g, transport_dtype(g.dtype)) for g in parts])
            grads = [tf.cast(s, g.dtype) for s, g in zip(summed, grads, strict=True)]
            local_grads = [g[block.start : block.start + block.rows] for g in grads]
            fraction = ctx.batch_fraction if later else tf.ones_like(ctx.batch_fraction)
            return [tf.math.divide_no_nan(g, tf.cast(fraction, g.dtype)) for g in local_grads]

        return shaped, backward

    rows = [t[: block.rows] if ctx.real is not None else t for t in tensors]
    numbers = [i for i, t in enumerate(rows) if t.dtype.is_floating]
    result: list[Any] = [None] * len(rows)
    if numbers:
        for i, whole in zip(numbers, gather(*[rows[i] for i in numbers]), strict=True):
            result[i] = whole
    rest = [i for i in range(len(rows)) if i not in numbers]
    if rest:
        for i, whole in zip(rest, _summed([send(rows[i]) for i in rest]), strict=True):
            result[i] = _shaped(whole, rows[i], ctx)
    return result


def _summed(tensors: list[tf.Tensor]) -> list[tf.Tensor]:
    """Sums over replicas; a message holds numbers of one dtype."""
    result: list[Any] = [None] * len(tensors)
    for dtype in {t.dtype.name: t.dtype for t in tensors}.values():
        same = [i for i, t in enumerate(tensors) if t.dtype == dtype]
        for i, total in zip(same, all_reduce_sum([tensors[i] for i in same]), strict=True):
            result[i] = total
    return result


def _shaped(whole: tf.Tensor, local: tf.Tensor, ctx: StepContext) -> tf.Tensor:
    rows = None
    unequal = ctx.real is not None or ctx.has_empty_replicas or is_checking_unequal_rows()
    if not (unequal or tf.executing_eagerly()) and local.shape[0] == ctx.rows is not None:
        # Parts with a static number of rows are equal, unless padded with copies.
        rows = ctx.rows * tf.distribute.get_strategy().placement.replicas
    return tf.cast(tf.ensure_shape(whole, [rows, *local.shape[1:]]), local.dtype)
