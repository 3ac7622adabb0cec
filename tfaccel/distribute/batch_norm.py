"""`BatchNormalization` over the global batch, in models written for one device.

On replicas a layer normalises its replica's own rows, as under TensorFlow's strategies, unless it
was created with `synchronized=True`. With `batch_norm="synchronized"` each layer acts like that, on
masked inputs too, where Keras's does not; its saved config is unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfaccel.distribute.mixins import mix_in


class GlobalBatchMoments:
    """Mixin for a `BatchNormalization` whose mean and variance are the global batch's."""

    axis: int

    @property
    def synchronized(self) -> bool:
        """True in a replica; elsewhere, as in `get_config`, the layer's original value."""
        across = tf.distribute.in_cross_replica_context()
        in_replica = tf.distribute.has_strategy() and not across
        return in_replica or bool(vars(self)["synchronized"])

    @synchronized.setter
    def synchronized(self, value: bool) -> None:
        vars(self)["synchronized"] = value

    def _moments(self, inputs: Any, mask: Any) -> Any:
        context = tf.distribute.get_replica_context() if self.synchronized else None
        if mask is None or context is None:
            return super()._moments(inputs, mask)  # type: ignore[misc]
        axes = [axis for axis in range(inputs.ndim) if axis != self.axis % inputs.ndim]
        dtype = keras.backend.result_type(inputs.dtype, "float32")
        values = ops.cast(inputs, dtype)
        counts = ops.cast(ops.broadcast_to(ops.expand_dims(mask, -1), ops.shape(inputs)), dtype)

        def over_batch(tensor: Any) -> Any:
            return context.all_reduce(tf.distribute.ReduceOp.SUM, ops.sum(tensor, axes))

        weights = over_batch(counts) + keras.backend.epsilon()
        mean = over_batch(values * counts) / weights
        shape = [1] * inputs.ndim
        shape[self.axis] = -1
        variance = over_batch(ops.square(values - ops.reshape(mean, shape)) * counts) / weights
        return ops.cast(mean, inputs.dtype), ops.cast(variance, inputs.dtype)


def synchronize(layers: Iterable[Any]) -> None:
    """Makes every `BatchNormalization` among `layers` normalise the global batch."""
    for layer in layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            mix_in(layer, GlobalBatchMoments)


def is_synchronized(layer: keras.layers.BatchNormalization) -> bool:
    """Whether a layer normalises the global batch."""
    return bool(layer.synchronized) or isinstance(layer, GlobalBatchMoments)
