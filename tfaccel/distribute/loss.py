"""Losses of the global batch.

A step weighs each replica's loss by its fraction of the rows, which is right for a mean over rows.
A sum is not such a mean, nor is a mean over rows left by a mask or sample weights: those are
converted to that form here. Losses that cannot be (one number for a batch, rows compared with each
other) are computed on the rows of all replicas, on each of them.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from tfaccel.distribute import _private, row_gather, step
from tfaccel.distribute.mixins import mix_in
from tfaccel.distribute.padding import row_weights
from tfaccel.distribute.per_example import is_per_example
from tfaccel.distribute.step import StepContext

_warned: set[str] = set()
_KERAS = tuple(int(part) for part in keras.version().split(".")[:2])
# Keras 3.13 and older sum an activity regularizer over rows, later ones take the mean.
_ACTIVITY_IS_A_MEAN = (3, 14)


class GlobalBatchLoss:
    """Mixin for a Keras loss: its row-weighted mean over replicas is the global batch's loss."""

    name: str
    reduction: str | None

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Computes the loss of this replica's rows, in the scale of the global batch."""
        ctx = step.current()
        if ctx is None or ctx.independent:
            loss: Any = super().__call__(y_true, y_pred, sample_weight)  # type: ignore[misc]
            return loss if ctx is None else _reduced_if_empty(loss, ctx, self.reduction)
        if ctx.has_global_batch:
            return super().__call__(y_true, y_pred, sample_weight)  # type: ignore[misc]
        loss = self
        if row_gather.has_other_replicas() and not is_per_example(loss, y_true, y_pred):
            return self._with_gathered_rows(y_true, y_pred, sample_weight, ctx)
        loss = super().__call__(y_true, y_pred, sample_weight)  # type: ignore[misc]
        loss = _reduced_if_empty(loss, ctx, self.reduction)
        if self.reduction == "sum":
            return tf.math.divide_no_nan(loss, tf.cast(ctx.batch_fraction, loss.dtype))
        mask = _combine_masks(_private.keras_mask(y_pred), ctx.loss_mask)
        counted = _denominator(self.reduction, mask, sample_weight, ctx.real)
        if counted is None:
            return loss
        whole = step.all_reduce_sum(counted)
        scale = tf.math.divide_no_nan(counted, whole * tf.cast(ctx.batch_fraction, counted.dtype))
        return tf.math.multiply_no_nan(loss, tf.cast(tf.stop_gradient(scale), loss.dtype))

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Computes the loss of each row."""
        values = super().call(y_true, y_pred)  # type: ignore[misc]
        ctx = step.current()
        if ctx is not None:
            ctx.loss_mask = _private.keras_mask(values)  # of classes to ignore
            if ctx.real is not None and values.shape.rank and not ctx.has_global_batch:
                # Copies of rows: Keras skips masked values.
                mask = _combine_masks(ctx.loss_mask, row_weights(ctx.real, values))
                values = tf.identity(values)
                _private.set_keras_mask(values, mask)
        return values

    def _with_gathered_rows(
        self, y_true: Any, y_pred: Any, sample_weight: Any, ctx: StepContext
    ) -> Any:
        """Computes the loss over the rows of all replicas, the same on each."""
        self._warn_cost(y_true, y_pred)
        mask = _private.keras_mask(y_pred)
        block = row_gather.local_block(keras.tree.flatten(y_pred)[0], ctx)
        local_rows = (y_true, y_pred, sample_weight, mask)
        y_true, y_pred, sample_weight, mask = row_gather.gather_rows(local_rows, block, ctx)
        if mask is not None:
            _private.set_keras_mask(y_pred, mask)
        with step.entered(
            dataclasses.replace(ctx, independent=True, has_empty_replicas=False, real=None)
        ):
            loss = super().__call__(y_true, y_pred, sample_weight)  # type: ignore[misc]
        if loss.shape.rank == 0:
            return loss
        # A vector counts as the sum of its rows. Only the local ones are reported; all have a
        # gradient.
        rows = row_gather.local_rows(tf.stop_gradient(loss), block)
        total = tf.reduce_sum(loss) * tf.cast(ctx.batch_fraction, loss.dtype)
        total = tf.math.divide_no_nan(total, tf.cast(tf.size(rows), loss.dtype))
        return rows + (total - tf.stop_gradient(total))

    def _warn_cost(self, y_true: Any, y_pred: Any) -> None:
        if self.name in _warned:
            return
        _warned.add(self.name)
        tensors = keras.tree.flatten((y_true, y_pred))
        sizes = [t.shape[1:].num_elements() for t in tensors]
        numbers = "unknown" if None in sizes else f"{4 * sum(sizes)}"
        logging.warning(
            "tfaccel: loss %r depends on the whole global batch, not on each row alone: every "
            "replica computes it over all rows, and y_true and y_pred are communicated in each "
            "step (%s bytes for each row of the batch).",
            self.name,
            numbers,
        )


class SummedOverRows:
    """Mixin for an activity regularizer of a Keras that sums it over the batch's rows."""

    def __call__(self, x: Any) -> Any:
        """Computes the penalty of this replica's rows, in the scale of the global batch."""
        value = super().__call__(x)  # type: ignore[misc]
        ctx = step.current()
        if ctx is None or ctx.independent or ctx.has_global_batch:
            return value
        return tf.math.divide_no_nan(value, tf.cast(ctx.batch_fraction, value.dtype))


def use_global_batch_losses(model: keras.Model) -> None:
    """Makes every loss of `model`, and every penalty on rows, additive over replicas."""
    for loss in [*_private.compiled_losses(model), *_attribute_losses(model)]:
        mix_in(loss, GlobalBatchLoss)
    if not isinstance(_private.additional_losses(model), AdditionalLoss):
        _private.sum_additional_losses(model, AdditionalLoss())
    if _KERAS < _ACTIVITY_IS_A_MEAN:
        for layer in _private.layers_of(model):
            penalty = getattr(layer, "activity_regularizer", None)
            if penalty is not None and not isinstance(penalty, SummedOverRows):
                # A copy: the same object may be the layer's kernel regularizer too.
                layer.activity_regularizer = copy.copy(penalty)
                mix_in(layer.activity_regularizer, SummedOverRows)


class AdditionalLoss:
    """The contribution of one entry of `model.losses`: its sum, over the rows of all replicas.

    One value per row is recognized by its first dimension: its size is unknown in a trace, and in
    an eager step or with static batches it is the number of this replica's rows. A shape seen with
    another number of rows is not per row, even if a later batch has as many.
    """

    def __init__(self) -> None:
        self._not_of_rows: set[tuple[int, ...]] = set()

    def __call__(self, loss: Any) -> Any:
        """The contribution of `loss`, in the scale of the global batch."""
        loss = tf.convert_to_tensor(loss)
        if not loss.dtype.is_floating:
            loss = tf.cast(loss, keras.config.floatx())
        ctx = step.current()
        if ctx is None or ctx.independent or not loss.shape.rank or not self._of_rows(loss, ctx):
            return tf.reduce_sum(loss)
        if ctx.real is not None:
            loss = tf.where(row_weights(ctx.real_rows(loss), loss), loss, tf.zeros_like(loss))
        return tf.math.divide_no_nan(tf.reduce_sum(loss), tf.cast(ctx.batch_fraction, loss.dtype))

    def _of_rows(self, loss: tf.Tensor, ctx: StepContext) -> bool:
        if loss.shape[0] is None:
            return True
        if loss.shape[0] != ctx.rows:
            self._not_of_rows.add(tuple(loss.shape))
        return tuple(loss.shape) not in self._not_of_rows


def _attribute_losses(model: keras.Model) -> list[keras.losses.Loss]:
    """The losses that a model keeps for its own `train_step`."""
    losses: list[keras.losses.Loss] = []
    for value in vars(model).values():
        several = value.values() if isinstance(value, dict) else value
        values = several if isinstance(value, (list, tuple, dict)) else [value]
        losses += [v for v in values if isinstance(v, keras.losses.Loss)]
    return [loss for loss in losses if not hasattr(loss, "_flat_losses")]


def _reduced_if_empty(loss: Any, ctx: StepContext, reduction: str | None) -> Any:
    """The loss of a replica, reduced and zero if it has no rows: Keras's is not, or is NaN."""
    if not ctx.has_empty_replicas or (reduction in (None, "none") and loss.shape.rank):
        return loss
    return ctx.zero_if_empty(tf.reduce_sum(loss))


def _combine_masks(mask: Any, other: Any) -> Any:
    if mask is None or other is None:
        return other if mask is None else mask
    return tf.cast(mask, tf.bool) & tf.cast(other, tf.bool)


def _denominator(
    reduction: str | None, mask: Any, sample_weight: Any, real: Any
) -> tf.Tensor | None:
    """Keras's divisor of a loss, if it is not the number of rows."""
    if reduction == "mean_with_sample_weight" and sample_weight is not None:
        weights = tf.cast(sample_weight, tf.float32)
        if mask is not None:
            valid = tf.cast(mask, tf.float32)
            while weights.shape.rank < valid.shape.rank:
                weights = weights[..., None]
            weights = weights * valid
        return _sum(weights, real)
    if mask is not None and reduction not in (None, "none"):
        return _sum(tf.cast(mask, tf.float32), real)
    return None


def _sum(weights: tf.Tensor, real: Any) -> tf.Tensor:
    if real is not None:
        weights = weights * tf.cast(row_weights(real, weights), weights.dtype)
    return tf.reduce_sum(weights)
