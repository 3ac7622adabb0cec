"""Constrains the layout of a tensor of a step, and of its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from tensorflow.experimental import dtensor


def constrain_layout(value: tf.Tensor, specs: Sequence[str], mesh: Any) -> tf.Tensor:
    """`value` laid out over `specs`, and its gradient too.

    Args:
        value: of a step; anything but an array of numbers is left unchanged, as are values through
            which Keras's losses look for logits.
        specs: the axis of each dimension, `dtensor.UNSHARDED`, or (of one) `dtensor.MATCH`.
        mesh: a DTensor mesh.
    """
    if value.dtype in (tf.resource, tf.variant, tf.string):
        return value
    if value.dtype.is_floating and _made_by_softmax(value):
        return value
    placed = relayout(value, dtensor.Layout(list(specs), mesh))
    if (mask := getattr(value, "_keras_mask", None)) is not None:
        placed._keras_mask = constrain_layout(mask, specs[: mask.shape.rank], mesh)
    if (logits := getattr(value, "_keras_logits", None)) is not None:
        placed._keras_logits = constrain_layout(logits, specs, mesh)
    return placed


def _made_by_softmax(value: tf.Tensor) -> bool:
    """Whether Keras's losses would inspect the operation that made `value` to find its logits."""
    if tf.executing_eagerly() or hasattr(value, "_keras_logits"):
        return False
    return value.op.type in ("Softmax", "Sigmoid")


def relayout(value: tf.Tensor, layout: Any) -> tf.Tensor:
    """`value` in `layout`, and its gradient too."""

    @tf.custom_gradient
    def laid_out(value: tf.Tensor) -> Any:
        return dtensor.relayout(value, layout), lambda gradient: dtensor.relayout(gradient, layout)

    return laid_out(value)
