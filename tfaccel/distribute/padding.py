"""Batches of one static shape: XLA compiles a step once, and a TPU requires it.

A replica's rows are padded to the number of rows it had in the first batch, with copies of its own
rows. Copies have no weight: losses (`loss.py`) and metrics (`metric_weights.py`) skip them, and
their predictions are cut off. Whatever uses a batch as a whole does not skip them: the statistics
of BatchNormalization, penalties on activities, and a `train_step` with its own sums over rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfaccel.errors import InputError


def pad(part: Any, fraction: tf.Tensor, rows: int) -> tuple[Any, tf.Tensor]:
    """Pads one replica's part of a batch.

    Args:
        part: a nest of host tensors with the same number of rows; None stays None.
        fraction: of the batch's rows; where it is 0, those of `part` are copies.
        rows: the number to pad to, at least the current number.

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
    """Raises when full batches do not divide evenly, as they are not dropped.

    Raises:
        InputError: reports the number of rows of a batch.
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
    """Removes copies from each replica's predictions.

    >>> rows = tf.constant([5, 6, 5])
    >>> drop_padding([rows], [tf.constant([True, True, False])])[0].numpy().tolist()
    [5, 6]
    """
    return [
        rows[: tf.reduce_sum(tf.cast(mask, tf.int32))]
        for rows, mask in zip(predicted, real, strict=True)
    ]
