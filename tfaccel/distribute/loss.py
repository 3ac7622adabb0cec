"""Losses whose parts add up to the loss of the whole batch.

A step weighs each replica's loss by its share of the rows, which is right for a mean over rows.
A sum is not one, and neither is a mean over what a mask or sample weights leave: those are
brought into that form here.
"""

from __future__ import annotations

import copy
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from tfaccel.distribute import _private, step
from tfaccel.distribute.adapt import adapt
from tfaccel.distribute.padding import row_weights

_warned: set[str] = set()
_KERAS = tuple(int(part) for part in keras.version().split(".")[:2])
# Keras 3.13 and older sum an activity regularizer over rows, later ones take the mean.
_ACTIVITY_IS_A_MEAN = (3, 14)


class WholeBatch:
    """Mixin for a Keras loss: its row-weighted mean over replicas is the whole batch's loss."""

    name: str
    reduction: str | None

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Computes the loss of our rows, in the scale of the whole batch."""
        loss = super().__call__(y_true, y_pred, sample_weight)  # type: ignore[misc]
        here = step.current()
        if here is None or here.whole:
            return loss
        if here.starved:
            # Keras leaves the losses of no rows unreduced, and a mean over none is NaN.
            loss = tf.where(here.share > 0, tf.reduce_sum(loss), tf.zeros([], loss.dtype))
        if here.alone:
            return loss
        if self.reduction == "sum":
            return tf.math.divide_no_nan(loss, tf.cast(here.share, loss.dtype))
        mask = _both(_private.keras_mask(y_pred), here.loss_mask)
        counted = _counted(self.reduction, mask, sample_weight, here.real)
        if counted is None:
            return loss
        whole = step.all_reduce_sum(counted)
        scale = tf.math.divide_no_nan(counted, whole * tf.cast(here.share, counted.dtype))
        return tf.math.multiply_no_nan(loss, tf.cast(tf.stop_gradient(scale), loss.dtype))

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Computes the loss of each row; says so when it is one number for all of them."""
        values = super().call(y_true, y_pred)  # type: ignore[misc]
        here = step.current()
        if here is not None:
            here.loss_mask = _private.keras_mask(values)  # of classes to ignore
            if here.real is not None and values.shape.rank and not here.whole:
                # Copies of rows: Keras leaves out what a mask does not hold.
                mask = _both(here.loss_mask, row_weights(here.real, values))
                values = tf.identity(values)
                _private.set_keras_mask(values, mask)
        if here is not None and values.shape.rank == 0 and self.name not in _warned:
            _warned.add(self.name)
            logging.warning(
                "tfaccel: loss %r returns one number for the whole batch, expected one per row; "
                "it is taken as a mean over the batch's rows. If it is a sum, return one loss per "
                "row and compile with reduction='sum'.",
                self.name,
            )
        return values


class ByShare:
    """Mixin for the metric that tracks one output's loss: it counts a batch, not a replica, once.

    Keras gives it the number of rows only where that is known when the step is traced, and then
    of copies too.
    """

    def update_state(self, values: Any, sample_weight: Any = None) -> None:
        """Adds our part of a batch's loss."""
        here = step.current()
        if here is not None and (sample_weight is None or here.real is not None):
            sample_weight = here.share
        super().update_state(values, sample_weight)  # type: ignore[misc]


class OfSomeRows:
    """Mixin for the metric that tracks a model's loss: of no rows, `add_loss` says nothing."""

    def update_state(self, values: Any, sample_weight: Any = None) -> None:
        """Adds our part of a batch's loss."""
        here = step.current()
        if here is not None and here.starved:
            values = tf.where(here.share > 0, values, tf.zeros_like(values))
        super().update_state(values, sample_weight)  # type: ignore[misc]


class SummedOverRows:
    """Mixin for an activity regularizer of a Keras that sums it over the batch's rows."""

    def __call__(self, x: Any) -> Any:
        """Computes the penalty of our rows, in the scale of the whole batch."""
        value = super().__call__(x)  # type: ignore[misc]
        here = step.current()
        if here is None or here.alone or here.whole:
            return value
        return tf.math.divide_no_nan(value, tf.cast(here.share, value.dtype))


def whole_batch(model: keras.Model) -> None:
    """Makes every compiled loss of `model`, and every penalty on rows, add up over replicas."""
    for loss in _private.compiled_losses(model):
        adapt(loss, WholeBatch)
    for metric in _private.loss_trackers(model):
        adapt(metric, ByShare)
    tracker = _private.loss_tracker(model)
    if tracker is not None:
        adapt(tracker, OfSomeRows)
    if _KERAS < _ACTIVITY_IS_A_MEAN:
        for layer in _private.layers_of(model):
            penalty = getattr(layer, "activity_regularizer", None)
            if penalty is not None and not isinstance(penalty, SummedOverRows):
                # A copy: the same object may be the layer's kernel regularizer too.
                layer.activity_regularizer = copy.copy(penalty)
                adapt(layer.activity_regularizer, SummedOverRows)


def _both(mask: Any, other: Any) -> Any:
    if mask is None or other is None:
        return other if mask is None else mask
    return tf.cast(mask, tf.bool) & tf.cast(other, tf.bool)


def _counted(reduction: str | None, mask: Any, sample_weight: Any, real: Any) -> tf.Tensor | None:
    """What Keras divides a loss by, where that is not the number of rows."""
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
