"""Metrics that a `train_step` of the user's own gives one number for a batch, such as its loss.

A `keras.metrics.Mean` counts each such number once. Of a batch on several replicas each has a
number for its own rows, and the mean of these is the batch's where they count by their rows.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfaccel.distribute import _private, step
from tfaccel.distribute.adapt import adapt


class OncePerBatch:
    """Mixin for a `keras.metrics.Mean`: all replicas together count a batch once."""

    def update_state(self, values: Any, sample_weight: Any = None) -> Any:
        """Adds one number, which counts by our share of the rows, or one for each row."""
        here = step.current()
        if here is not None and sample_weight is None and tf.convert_to_tensor(values).shape == ():
            sample_weight = here.share
        return super().update_state(values, sample_weight)  # type: ignore[misc]


def count_batches_once(model: keras.Model) -> None:
    """Prepares the means of `model` that its own steps update."""
    known = [_private.loss_tracker(model), *_private.loss_trackers(model)]
    known += _private.compiled_metrics(model)
    for metric in model.metrics:
        plain = type(metric).update_state is keras.metrics.Mean.update_state
        if plain and not any(metric is other for other in known):
            adapt(metric, OncePerBatch)
