"""Gradients of an Embedding, which hold rows of its table, in the formulas of optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def divide(as_keras: Callable[[Any, Any], Any], x1: Any, x2: Any) -> Any:
    """`x1 / x2`; for rows and a whole table, the rows divided by the table's rows.

    Keras checks in a `tf.cond` whether `x2` is zero or NaN in another row, as 0 / 0 is not 0;
    DTensor cannot lay out such a condition, and optimizers never divide by zero.

    Args:
        as_keras: Keras's own division.
        x1: the dividend.
        x2: the divisor.
    """
    if not isinstance(x1, tf.IndexedSlices) or isinstance(x2, tf.IndexedSlices):
        return as_keras(x1, x2)
    if not len(getattr(x2, "shape", ())):
        return as_keras(x1, x2)
    of_rows = tf.gather(tf.convert_to_tensor(x2), x1.indices)
    return tf.IndexedSlices(x1.values / of_rows, x1.indices, x1.dense_shape)
