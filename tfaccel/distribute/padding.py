"""Batches of one static shape: XLA compiles a step once, and a TPU takes nothing else.

A replica's rows are padded to the number that the first batch gave it, with copies of its own
rows. What is a copy carries no weight: losses leave it out (`loss.py`), metrics too
(`metric_weights.py`), and predictions of it are cut off. What sees a batch as a whole does not
leave it out: the statistics of BatchNormalization, penalties on activities, and a `train_step` that
sums over rows by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfaccel.errors import InputError


def pad(part: Any, fraction: tf.Tensor, rows: int) -> tuple[Any, tf.Tensor]:
    """Fills one replica's part of a batch up.

    Args:
        part: a nest of host tensors with the same number of rows; None stays None.
        fraction: of the batch's rows; where it is 0, those of `part` are copies.
        rows: how many there shall be, at least as many as there are.

    Returns:
        The nest with static shapes, and which rows are real: bool, shape `[rows]`.

    Raises:
        InputError: when a tensor has no static shape.

    >>> (x,), real = pad((tf.constant([5, 6]),), tf.constant(1.0), 5)
    >>> x.numpy().tolist(), real.numpy().tolist()
    ([5, 6, 5, 6, 5], [True, True, False, False, False])
    """
    leaves = [t for t in tf.nest.flatten(part) if t is not None]
    for leaf in leaves:
        _check(leaf)
    row_count = tf.reduce_max(tf.stack([tf.shape(leaf)[0] for leaf in leaves]))
    filled = tf.nest.map_structure(lambda t: None if t is None else _fill(t, rows), part)
    return filled, (tf.range(rows) < row_count) & (fraction > 0)


def _check(tensor: Any) -> None:
    if not isinstance(tensor, tf.Tensor) or tensor.dtype == tf.string:
        kind = "strings" if isinstance(tensor, tf.Tensor) else type(tensor).__name__
        raise InputError(
            f"tfaccel: the batch holds {kind}; expected dense numbers of one shape, as static "
            "batches require; map the dataset to those."
        )


def _fill(tensor: tf.Tensor, rows: int) -> tf.Tensor:
    row_count = tf.shape(tensor)[0]
    filled = tf.case(
        [
            (tf.equal(row_count, rows), lambda: tf.identity(tensor)),
            (row_count > 0, lambda: tf.gather(tensor, tf.range(rows) % row_count)),
        ],
        lambda: tf.zeros([rows, *tf.unstack(tf.shape(tensor)[1:])], tensor.dtype),
    )
    return tf.ensure_shape(filled, [rows, *tensor.shape[1:]])


def check_divides(rows: int, replicas: int) -> None:
    """Raises when full batches, of which none is dropped, do not divide evenly themselves.

    Raises:
        InputError: names the number of rows of a batch.
    """
    if rows % replicas:
        raise InputError(
            f"tfaccel: partial_batch='drop' was requested with batches of {rows} rows on "
            f"{replicas} replicas; expected a number that divides; change the batch size, or use "
            "partial_batch='pad'."
        )


def row_weights(real: tf.Tensor, like: Any) -> Any:
    """`real` (shape `[rows]`) broadcast to the shape of `like` (`[rows, ...]`)."""
    real = tf.reshape(real, [-1] + [1] * (like.shape.rank - 1))
    return tf.broadcast_to(real, tf.shape(like))


def drop_padding(predicted: Sequence[tf.Tensor], real: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Cuts copies off what each replica predicted.

    >>> rows = tf.constant([5, 6, 5])
    >>> drop_padding([rows], [tf.constant([True, True, False])])[0].numpy().tolist()
    [5, 6]
    """
    return [
        rows[: tf.reduce_sum(tf.cast(mask, tf.int32))]
        for rows, mask in zip(predicted, real, strict=True)
    ]
