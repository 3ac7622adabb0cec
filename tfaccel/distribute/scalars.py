"""Metrics that a step of the user's own tells one number for the batch.

`keras.metrics.Mean().update_state(loss)` counts one value on one device, and one for each replica
here: a mean in which replicas of few rows count as much as those of many. Such a number is taken
for a mean over the replica's rows, as every log is, and counts by their share.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfaccel.distribute import _private, step
from tfaccel.distribute.adapt import adapt
from tfaccel.distribute.ways import ROWS


class CountsByShare:
    """Mixin for `keras.metrics.Mean` and `Sum`: the batch's one number counts once."""

    name: str

    def update_state(self, values: Any, sample_weight: Any = None) -> Any:
        """Adds what our rows say."""
        here = step.current()
        if here is not None and sample_weight is None and _is_scalar(values):
            sample_weight = here.share
            values = tf.convert_to_tensor(values)
            if here.starved:
                values = tf.where(here.share > 0, values, tf.zeros_like(values))
            if (way := here.ways.of("metrics", self.name)) != ROWS:
                part = here.part(tf.cast(values, tf.float32), way)
                values = tf.math.divide_no_nan(part, here.share)
        return super().update_state(values, sample_weight)  # type: ignore[misc]


class OneNumberByShare:
    """Mixin for a metric of a user's function, which may return one number for its rows."""

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Adds what our rows say."""
        here = step.current()
        function = _private.metric_function(self)
        counted = sample_weight is None and _private.keras_mask(y_pred) is None
        if here is not None and function is not None and counted:
            value = function(y_true, y_pred)
            if _is_scalar(value):
                value = tf.convert_to_tensor(value)
                if here.starved:
                    value = tf.where(here.share > 0, value, tf.zeros_like(value))
                return keras.metrics.Mean.update_state(self, value, here.share)
        return super().update_state(y_true, y_pred, sample_weight)  # type: ignore[misc]


def count_by_share(model: keras.Model) -> None:
    """Makes the metrics of `model` that average whatever they are told count a batch once."""
    told = (keras.metrics.Mean.update_state, keras.metrics.Sum.update_state)
    of_outputs = _private.loss_trackers(model)  # which count so already
    tracker = _private.loss_tracker(model)
    for metric in model.metrics:
        if any(metric is one for one in of_outputs):
            continue
        if metric is tracker or type(metric).update_state in told:
            adapt(metric, CountsByShare)
    for metric in _private.compiled_metrics(model):
        function = _private.metric_function(metric)
        if function is not None and not str(function.__module__).startswith("keras."):
            adapt(metric, OneNumberByShare)


def _is_scalar(values: Any) -> bool:
    shape = getattr(values, "shape", None)
    return tf.TensorShape(shape).rank == 0 if shape is not None else not hasattr(values, "__len__")
