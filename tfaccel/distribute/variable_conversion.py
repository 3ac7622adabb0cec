"""Conversion of distributed variables to and from NumPy arrays and Python numbers.

TensorFlow's only have `numpy()`, but callbacks use `int(optimizer.iterations)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf


class NumericConversion:
    """Mixin for a distributed variable."""

    numpy: Callable[[], Any]

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype)

    def __int__(self) -> int:
        return int(self.numpy())

    def __float__(self) -> float:
        return float(self.numpy())

    def __complex__(self) -> complex:
        return complex(self.numpy())

    def __bool__(self) -> bool:
        return bool(self.numpy())


class Sum:
    """Mixin for a variable whose value is the sum over replicas, such as the state of a metric.

    TensorFlow gives each replica a part of a value assigned outside of replicas: a count of 3 over
    two replicas, in integers, then becomes 2.
    """

    values: tuple[Any, ...]
    dtype: Any
    distribute_strategy: Any

    def assign(
        self, value: Any, use_locking: bool = False, name: Any = None, read_value: bool = True
    ) -> Any:
        """Sets the value; outside of replicas, the first one holds all of it."""
        strategy = self.distribute_strategy
        inside = tf.distribute.get_strategy() is strategy
        if inside and not tf.distribute.in_cross_replica_context():
            return super().assign(value, use_locking, name, read_value)  # type: ignore[misc]
        value = tf.cast(value, self.dtype)
        chief = strategy.placement.rank == 0
        for number, part in enumerate(self.values):
            with tf.device(part.device):
                part.assign(value if chief and number == 0 else tf.zeros_like(value))
        return value
