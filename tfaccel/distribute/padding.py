"""Batches of one static shape: XLA compiles a step once, and a TPU takes nothing else.

A replica's rows are filled up to the number that the first batch gave it, with copies of its own
rows. What is a copy carries no weight: losses leave it out (`loss.py`), metrics too, and
predictions of it are cut off. What sees a batch as a whole does not leave it out: the statistics
of BatchNormalization, penalties on activities, and a `train_step` that sums over rows by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfaccel.distribute import _private, step
from tfaccel.distribute.adapt import adapt
from tfaccel.errors import InputError


def pad(part: Any, fraction: tf.Tensor, rows: int) -> tuple[Any, tf.Tensor]:
    """Fills one replica's part of a batch up.

    Args:
        part: a nest of host tensors with the same number of rows; None stays None.
        fraction: of the batch's rows; where it is 0, those of `part` are no rows of ours.
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
    found = tf.reduce_max(tf.stack([tf.shape(leaf)[0] for leaf in leaves]))
    filled = tf.nest.map_structure(lambda t: None if t is None else _fill(t, rows), part)
    return filled, (tf.range(rows) < found) & (fraction > 0)


def _check(tensor: Any) -> None:
    if not isinstance(tensor, tf.Tensor) or tensor.dtype == tf.string:
        kind = "strings" if isinstance(tensor, tf.Tensor) else type(tensor).__name__
        raise InputError(
            f"tfaccel: the batch holds {kind}, expected dense numbers of one shape, which static "
            "batches are made of; map the dataset to those."
        )


def _fill(tensor: tf.Tensor, rows: int) -> tf.Tensor:
    found = tf.shape(tensor)[0]
    filled = tf.case(
        [
            (tf.equal(found, rows), lambda: tf.identity(tensor)),
            (found > 0, lambda: tf.gather(tensor, tf.range(rows) % found)),
        ],
        lambda: tf.zeros([rows, *tf.unstack(tf.shape(tensor)[1:])], tensor.dtype),
    )
    return tf.ensure_shape(filled, [rows, *tensor.shape[1:]])


def check_divides(rows: int, replicas: int) -> None:
    """Raises when full batches, of which none is dropped, do not divide evenly themselves.

    Raises:
        InputError: says how many rows a batch has.
    """
    if rows % replicas:
        raise InputError(
            f"tfaccel: partial_batch='drop' was requested with batches of {rows} rows on "
            f"{replicas} replicas, expected a number that divides; change the batch size, or take "
            "partial_batch='pad'."
        )


def row_weights(real: tf.Tensor, like: Any) -> Any:
    """`real` (shape `[rows]`) broadcast to the shape of `like` (`[rows, ...]`)."""
    real = tf.reshape(real, [-1] + [1] * (like.shape.rank - 1))
    return tf.broadcast_to(real, tf.shape(like))


class IgnoresPadding:
    """Mixin for a Keras metric of `(y_true, y_pred)`: copies of rows count for nothing."""

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Adds our real rows."""
        ctx = step.current()
        if ctx is not None and ctx.real is not None:
            real, mask = ctx.real, _private.keras_mask(y_pred)
            if sample_weight is not None:
                sample_weight = tf.convert_to_tensor(sample_weight)
                sample_weight *= tf.cast(row_weights(real, sample_weight), sample_weight.dtype)
            else:
                # Keras multiplies weights by the mask as they are.
                sample_weight = tf.cast(
                    real if mask is None else row_weights(real, mask), tf.float32
                )
        return super().update_state(y_true, y_pred, sample_weight)  # type: ignore[misc]


class CountsRealRows:
    """Mixin for the metric that tracks a model's loss: it counts the rows that are real.

    It does so where it is told a number of rows: by Keras, of static batches. A step that tells it
    a loss alone counts the batch once (`scalar_metrics.py`).
    """

    def update_state(self, values: Any, sample_weight: Any = None) -> Any:
        """Adds our part of a batch's loss."""
        ctx = step.current()
        if ctx is not None and ctx.real is not None and sample_weight is not None:
            # Rows of the first input, of which there may be several for each of the batch.
            real = tf.reduce_mean(tf.cast(ctx.real, tf.float32))
            sample_weight = tf.cast(sample_weight, tf.float32) * real
        return super().update_state(values, sample_weight)  # type: ignore[misc]


def ignore_padding(model: keras.Model) -> None:
    """Makes the compiled metrics of `model` leave copies of rows out."""
    for metric in _private.compiled_metrics(model):
        adapt(metric, IgnoresPadding)
    tracker = _private.loss_tracker(model)
    if tracker is not None:
        adapt(tracker, CountsRealRows)


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
