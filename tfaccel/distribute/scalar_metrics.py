"""Metrics that a custom step tells one number for the batch.

`keras.metrics.Mean().update_state(loss)` counts one value on one device, and one for each replica
here: a mean in which replicas of few rows count as much as those of many. Such a number is taken
for a mean over the replica's rows, as every log is, and counts by their batch fraction.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfaccel.distribute import _private, row_gather, step
from tfaccel.distribute.adapt import adapt
from tfaccel.distribute.per_example import is_row_mean
from tfaccel.distribute.step_reductions import WEIGHTED_MEAN


class WeightedScalar:
    """Mixin for `keras.metrics.Mean` and `Sum`: the batch's one number counts once."""

    name: str

    def update_state(self, values: Any, sample_weight: Any = None) -> Any:
        """Adds what our rows say."""
        ctx = step.current()
        if ctx is not None and sample_weight is None and _is_scalar(values):
            sample_weight = ctx.batch_fraction
            values = tf.convert_to_tensor(values)
            if ctx.has_empty_replicas:
                values = tf.where(ctx.batch_fraction > 0, values, tf.zeros_like(values))
            if (reduction := ctx.reductions.of("metrics", self.name)) != WEIGHTED_MEAN:
                part = ctx.contribution(tf.cast(values, tf.float32), reduction)
                values = tf.math.divide_no_nan(part, ctx.batch_fraction)
        return super().update_state(values, sample_weight)  # type: ignore[misc]


class WeightedBatchValue:
    """Mixin for a metric of a user's function, which may return one number for its rows.

    Where that is no mean over rows (a Dice coefficient of the batch), it is computed of all rows.
    """

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Adds what our rows say."""
        ctx = step.current()
        function = _private.metric_function(self)
        # Weights of rows that are copies are ours (`padding.py`); a number for the batch has none.
        padded = ctx is not None and ctx.real is not None
        unweighted = sample_weight is None or padded
        counted = unweighted and _private.keras_mask(y_pred) is None
        if ctx is not None and function is not None and counted:
            value = function(y_true, y_pred)
            if _is_scalar(value):
                if padded or _needs_all_rows(self, function, y_true, y_pred, ctx):
                    block = row_gather.local_block(keras.tree.flatten(y_pred)[0], ctx)
                    value = function(*row_gather.gather_rows((y_true, y_pred), block, ctx))
                    return keras.metrics.Mean.update_state(self, value, ctx.batch_fraction)
                value = tf.convert_to_tensor(value)
                if ctx.has_empty_replicas:
                    value = tf.where(ctx.batch_fraction > 0, value, tf.zeros_like(value))
                return keras.metrics.Mean.update_state(self, value, ctx.batch_fraction)
        return super().update_state(y_true, y_pred, sample_weight)  # type: ignore[misc]


def weight_scalar_metrics(model: keras.Model) -> None:
    """Makes the metrics of `model` that average whatever they are told count a batch once."""
    scalar_updates = (keras.metrics.Mean.update_state, keras.metrics.Sum.update_state)
    of_outputs = _private.loss_trackers(model)  # which count so already
    tracker = _private.loss_tracker(model)
    for metric in model.metrics:
        if any(metric is one for one in of_outputs):
            continue
        if metric is tracker or type(metric).update_state in scalar_updates:
            adapt(metric, WeightedScalar)
    for metric in _private.compiled_metrics(model):
        function = _private.metric_function(metric)
        if function is not None and not str(function.__module__).startswith("keras."):
            adapt(metric, WeightedBatchValue)


def _needs_all_rows(
    metric: Any, function: Any, y_true: Any, y_pred: Any, ctx: step.StepContext
) -> bool:
    """Whether a number for our rows cannot be combined with those of the other replicas."""
    if ctx.independent or ctx.has_global_batch or not row_gather.has_other_replicas():
        return False
    return not is_row_mean(metric, function, y_true, y_pred)


def _is_scalar(values: Any) -> bool:
    shape = getattr(values, "shape", None)
    return tf.TensorShape(shape).rank == 0 if shape is not None else not hasattr(values, "__len__")
