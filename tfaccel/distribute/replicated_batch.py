"""Replicated batches: steps that every replica runs over all rows.

A step may use the batch as a whole in ways that cannot be split: it compares rows with each other,
keeps them in a queue, or is written for the number of rows in the global batch. Where the
first-step check finds that replicas with parts of the batch cannot match one device, each first
gathers the rows of all others, and the first replica's results count. That is one device's step, at
one device's speed; the replicas share only the input work, not memory. `predict` of such a model
runs the same way, as its rows may depend on each other in `call`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfaccel.distribute import _private, row_gather
from tfaccel.distribute.step import StepContext, is_checking_unequal_rows


def has_equal_parts(batch: _private.PerReplicaBatch, workers: int) -> bool:
    """Whether all replicas are known to have the same number of rows when a step is traced.

    Args:
        batch: sharded over the replicas.
        workers: how many there are: the parts of others are not visible.
    """
    if batch.static_rows and not is_checking_unequal_rows():
        return True
    rows = [
        [leaf.shape[0] for leaf in tf.nest.flatten(part.data) if leaf is not None]
        for part in batch.values
    ]
    return workers == 1 and all(each == rows[0] for each in rows)


def gather(
    data: Any, fraction: tf.Tensor, real: Any, equal: bool
) -> tuple[Any, tf.Tensor, tf.Tensor]:
    """The rows of all replicas, in the order of the global batch; every replica must call.

    Args:
        data: a replica's part of a batch.
        fraction: its part of all rows.
        real: which of its rows are not copies (bool, shape `[rows]`); None where all are.
        equal: whether a static number of rows is that of every replica.

    Returns:
        The batch, this replica's weight in the result (1 on the first replica, 0 on the others),
        and for each row whether it counts here.

    Raises:
        StrategyError: for strings, ragged and sparse tensors.
    """
    gathered, block = _gather(data, StepContext(fraction, real=real), equal)
    first = tf.equal(row_gather.block_number(), 0)
    return gathered, tf.cast(first, tf.float32), tf.repeat(first, block.total)


def predict(fn: Callable[[Any], Any], data: Any, real: Any, equal: bool) -> Any:
    """The result of `fn` on the rows of all replicas, for the replica's rows; all must call.

    Args:
        fn: a step that returns rows.
        data: a replica's part of a batch.
        real: as in `gather`.
        equal: as in `gather`.

    Returns:
        Our rows of each tensor that has as many rows as the batch; other tensors from the first
        replica.

    Raises:
        StrategyError: for strings, ragged and sparse tensors.
    """
    gathered, block = _gather(data, StepContext(tf.ones([]), real=real), equal)
    return keras.tree.map_structure(lambda rows: _own_rows(rows, block), fn(gathered))


def _gather(data: Any, ctx: StepContext, equal: bool) -> tuple[Any, row_gather.RowBlock]:
    """The rows of all replicas, and this replica's block of the rows of the batch."""
    flat = keras.tree.flatten(data)
    chosen = [i for i, value in enumerate(flat) if value is not None]
    blocks = row_gather.blocks_of([flat[i] for i in chosen], ctx)
    max_rows = tf.reduce_max(tf.stack([block.total for block in blocks]))
    replicas = tf.distribute.get_strategy().placement.replicas
    totals = []
    for i, block in zip(chosen, blocks, strict=True):
        static_rows = flat[i].shape[0]
        gathered_rows = row_gather.gather_rows(flat[i], block, ctx, shared=False)
        # One row that belongs to all others is on every replica.
        once = (block.total == replicas) & (max_rows > replicas)
        gathered_rows = gathered_rows[: tf.where(once, 1, block.total)]
        if static_rows is not None and ctx.real is None and equal:
            gathered_rows = tf.ensure_shape(
                gathered_rows, [static_rows * replicas, *gathered_rows.shape[1:]]
            )
        flat[i] = gathered_rows
        totals.append(tf.where(once, max_rows, block.total))
    fewest = tf.argmin(tf.stack(totals))  # other parts have several rows for each of the batch
    of_batch = [tf.stack(numbers)[fewest] for numbers in zip(*blocks, strict=True)]
    return keras.tree.pack_sequence_as(data, flat), row_gather.RowBlock(*of_batch)


def _own_rows(rows: Any, block: row_gather.RowBlock) -> Any:
    if not rows.shape.rank:
        return rows
    own = row_gather.local_rows(rows, block)
    # Values without the batch's rows (a table, a summary) are returned once.
    first = tf.equal(row_gather.block_number(), 0)
    once = rows[: tf.where(first, tf.shape(rows)[0], 0)]
    return tf.cond(tf.shape(rows)[0] == block.total, lambda: own, lambda: once)
