"""The weight of a metric's update: replicas together count a batch as one device does.

Each metric gets one mixin. The update of a metric of `(y_true, y_pred)` has a value for each row,
of which copies that pad a batch have zero weight (`padding.py`). The update of a mean may be
one number for the batch: `keras.metrics.Mean().update_state(loss)` counts one value on one device,
but one per replica here, where replicas with few rows would count as much as those with many. Such
a number is treated as a mean over the replica's rows, as every log is, and weighted by their batch
fraction.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfaccel.distribute import _private, row_gather, step
from tfaccel.distribute.mixins import mix_in
from tfaccel.distribute.padding import row_weights
from tfaccel.distribute.per_example import is_row_mean
from tfaccel.distribute.reduction_rules import WEIGHTED_MEAN
from tfaccel.distribute.step import StepContext


def weight_metrics(model: keras.Model) -> None:
    """Makes the metrics of `model` weight updates by replicas as one device's would."""
    tracker, of_outputs = _private.loss_tracker(model), _private.loss_trackers(model)
    if tracker is not None:
        mix_in(tracker, TracksLoss)
    for metric in of_outputs:
        mix_in(metric, TracksOutputLoss)
    scalar_updates = (keras.metrics.Mean.update_state, keras.metrics.Sum.update_state)
    for metric in model.metrics:
        is_tracker = any(metric is one for one in (tracker, *of_outputs))
        if not is_tracker and type(metric).update_state in scalar_updates:
            mix_in(metric, WeightedScalar)
    for metric in _private.compiled_metrics(model):
        function = _private.metric_function(metric)
        if function is not None and not str(function.__module__).startswith("keras."):
            mix_in(metric, WeightedBatchValue)
        else:
            mix_in(metric, IgnoresPadding)


class TracksLoss:
    """Mixin for the metric that tracks a model's loss, updated by Keras's and custom steps.

    Keras passes the number of rows if known when the step is traced, including copies.
    """

    name: str

    def update_state(self, values: Any, sample_weight: Any = None) -> None:
        """Adds this replica's part of a batch's loss."""
        ctx = step.current()
        if ctx is not None:
            if sample_weight is not None and ctx.real is not None:
                # Rows of the first input, of which there may be several for each of the batch.
                real = tf.reduce_mean(tf.cast(ctx.real, tf.float32))
                sample_weight = tf.cast(sample_weight, tf.float32) * real
            if sample_weight is None and _is_scalar(values):
                values, sample_weight = _batch_value(self.name, values, ctx), ctx.batch_fraction
            # Without rows, `add_loss` adds nothing.
            values = ctx.zero_if_empty(_mean_of_rows(values, ctx))
        super().update_state(values, sample_weight)  # type: ignore[misc]


class TracksOutputLoss:
    """Mixin for the metric that tracks one output's loss: counts once per batch, not per replica.

    Keras passes the number of rows only if known when the step is traced, including copies.
    """

    def update_state(self, values: Any, sample_weight: Any = None) -> None:
        """Adds this replica's part of a batch's loss."""
        ctx = step.current()
        if ctx is not None and not tf.convert_to_tensor(values).shape.rank:
            if sample_weight is None or ctx.real is not None:
                sample_weight = ctx.batch_fraction
        elif ctx is not None and ctx.real is not None:  # of a loss that was not reduced
            sample_weight = tf.cast(row_weights(ctx.real_rows(values), values), values.dtype)
        elif ctx is not None and sample_weight is not None:
            values = _mean_of_rows(values, ctx)
        super().update_state(values, sample_weight)  # type: ignore[misc]


class WeightedScalar:
    """Mixin for `keras.metrics.Mean` and `Sum`: one number per batch counts once."""

    name: str

    def update_state(self, values: Any, sample_weight: Any = None) -> Any:
        """Adds the rows of this replica."""
        ctx = step.current()
        if ctx is not None and sample_weight is None and _is_scalar(values):
            values, sample_weight = _batch_value(self.name, values, ctx), ctx.batch_fraction
        return super().update_state(values, sample_weight)  # type: ignore[misc]


class IgnoresPadding:
    """Mixin for a Keras metric of `(y_true, y_pred)`: copies of rows have zero weight."""

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Adds the real rows of this replica."""
        ctx = step.current()
        if ctx is not None and ctx.real is not None:
            if sample_weight is not None:
                sample_weight = tf.convert_to_tensor(sample_weight)
                real = row_weights(ctx.real_rows(sample_weight), sample_weight)
                sample_weight *= tf.cast(real, sample_weight.dtype)
            else:
                real, mask = (
                    ctx.real_rows(keras.tree.flatten(y_pred)[0]),
                    _private.keras_mask(y_pred),
                )
                # Keras multiplies weights by the mask directly.
                sample_weight = tf.cast(
                    real if mask is None else row_weights(real, mask), tf.float32
                )
        return super().update_state(y_true, y_pred, sample_weight)  # type: ignore[misc]


class WeightedBatchValue(IgnoresPadding):
    """Mixin for a metric of a user's function, which may return one number for its rows.

    Where that is not a mean over rows (a Dice coefficient of the batch), it is computed on all
    rows.
    """

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Adds the rows of this replica."""
        ctx = step.current()
        function = _private.metric_function(self)
        # Sample weights that mark copies are tfaccel's; a number for the batch has none.
        padded = ctx is not None and ctx.real is not None
        unweighted = sample_weight is None or padded
        counted = unweighted and _private.keras_mask(y_pred) is None
        if ctx is not None and function is not None and counted:
            value = function(y_true, y_pred)
            if _is_scalar(value):
                if padded or _needs_all_rows(self, function, y_true, y_pred, ctx):
                    block = row_gather.local_block(keras.tree.flatten(y_pred)[0], ctx)
                    value = function(*row_gather.gather_rows((y_true, y_pred), block, ctx))
                else:
                    value = ctx.zero_if_empty(tf.convert_to_tensor(value))
                return keras.metrics.Mean.update_state(self, value, ctx.batch_fraction)
        return super().update_state(y_true, y_pred, sample_weight)


def _batch_value(name: str, values: Any, ctx: StepContext) -> tf.Tensor:
    """A metric's update, weighted by the replica's batch fraction."""
    values = ctx.zero_if_empty(tf.convert_to_tensor(values))
    if (reduction := ctx.reductions.of("metrics", name)) == WEIGHTED_MEAN:
        return values
    part = ctx.contribution(tf.cast(values, tf.float32), reduction)
    return tf.math.divide_no_nan(part, ctx.batch_fraction)


def _mean_of_rows(values: Any, ctx: StepContext) -> Any:
    """The value that a tracker counts for an unreduced loss: the mean over rows."""
    values = tf.convert_to_tensor(values)
    if not values.shape.rank:
        return values
    rows = tf.cast(tf.shape(values)[0], values.dtype)
    if ctx.real is not None:  # copies have a loss of zero
        rows = tf.reduce_sum(tf.cast(ctx.real, values.dtype))
    rest = tf.cast(tf.size(values[:1]), values.dtype)
    return tf.math.divide_no_nan(tf.reduce_sum(values), rows * rest)


def _needs_all_rows(
    metric: Any, function: Any, y_true: Any, y_pred: Any, ctx: step.StepContext
) -> bool:
    """Whether a number for a replica's rows cannot be combined with those of the other replicas."""
    if ctx.independent or ctx.has_global_batch or not row_gather.has_other_replicas():
        return False
    return not is_row_mean(metric, function, y_true, y_pred)


def _is_scalar(values: Any) -> bool:
    shape = getattr(values, "shape", None)
    return tf.TensorShape(shape).rank == 0 if shape is not None else not hasattr(values, "__len__")
