"""Steps that every replica runs over all rows of the batch.

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

from tfaccel.distribute import gathered
from tfaccel.distribute.step import Step


def gather(data: Any, share: tf.Tensor, real: Any) -> tuple[Any, tf.Tensor, tf.Tensor]:
    """The rows of all replicas, in the order of the global batch; every replica must call.

    Args:
        data: a replica's part of a batch.
        share: its part of all rows.
        real: which of its rows are no copies (bool, shape `[rows]`); None where all are.

    Returns:
        The batch, our share of what comes of it (1 on the first replica, 0 on the others), and
        for each row whether it counts here.

    Raises:
        StrategyError: for strings, ragged and sparse tensors.
    """
    here = Step(share, real=real)
    flat = keras.tree.flatten(data)
    chosen = [i for i, value in enumerate(flat) if value is not None]
    blocks = gathered.blocks_of([flat[i] for i in chosen], here)
    most = tf.reduce_max(tf.stack([block.total for block in blocks]))
    replicas = tf.distribute.get_strategy().placement.replicas
    rows = most
    for i, block in zip(chosen, blocks, strict=True):
        ours = flat[i].shape[0]
        whole = gathered.of_all(flat[i], block, here, shared=False)
        # One row that goes with all others has been given to every replica.
        once = (block.total == replicas) & (most > replicas)
        whole = whole[: tf.where(once, 1, block.total)]
        if ours is not None and real is None:  # static parts are equal parts
            whole = tf.ensure_shape(whole, [ours * replicas, *whole.shape[1:]])
        flat[i] = whole
        rows = tf.minimum(rows, tf.where(once, most, block.total))
    first = tf.equal(gathered.block_number(), 0)
    counts = tf.repeat(first, rows)
    return keras.tree.pack_sequence_as(data, flat), tf.cast(first, tf.float32), counts
