"""Replicated batches: steps that every replica runs over all rows.

A step may be about the batch as a whole in ways that cannot be taken apart: it compares rows with
each other, keeps them in a queue, or is written for the number of rows in the global batch. Where
the first-step check finds that replicas with parts of the batch cannot make one device's numbers,
each gets the rows of all others first, and the first replica's results count. That is one device's
step, at one device's speed; what the replicas share is the memory of nothing and the work of the
input.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfaccel.distribute import row_gather
from tfaccel.distribute.step import StepContext


def gather(data: Any, fraction: tf.Tensor, real: Any) -> tuple[Any, tf.Tensor, tf.Tensor]:
    """The rows of all replicas, in the order of the global batch; every replica must call.

    Args:
        data: a replica's part of a batch.
        fraction: its part of all rows.
        real: which of its rows are no copies (bool, shape `[rows]`); None where all are.

    Returns:
        The batch, our weight in the result (1 on the first replica, 0 on the others), and
        for each row whether it counts here.

    Raises:
        StrategyError: for strings, ragged and sparse tensors.
    """
    ctx = StepContext(fraction, real=real)
    flat = keras.tree.flatten(data)
    chosen = [i for i, value in enumerate(flat) if value is not None]
    blocks = row_gather.blocks_of([flat[i] for i in chosen], ctx)
    max_rows = tf.reduce_max(tf.stack([block.total for block in blocks]))
    replicas = tf.distribute.get_strategy().placement.replicas
    rows = max_rows
    for i, block in zip(chosen, blocks, strict=True):
        static_rows = flat[i].shape[0]
        gathered_rows = row_gather.gather_rows(flat[i], block, ctx, shared=False)
        # One row that goes with all others has been given to every replica.
        once = (block.total == replicas) & (max_rows > replicas)
        gathered_rows = gathered_rows[: tf.where(once, 1, block.total)]
        if static_rows is not None and real is None:  # static parts are equal parts
            gathered_rows = tf.ensure_shape(
                gathered_rows, [static_rows * replicas, *gathered_rows.shape[1:]]
            )
        flat[i] = gathered_rows
        rows = tf.minimum(rows, tf.where(once, max_rows, block.total))
    first = tf.equal(row_gather.block_number(), 0)
    counts = tf.repeat(first, rows)
    return keras.tree.pack_sequence_as(data, flat), tf.cast(first, tf.float32), counts
