"""What a device really holds of a model that was built under a strategy."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf
from tensorflow.experimental import dtensor

from tfaccel.distribute import _private


def held(variables: Any) -> int:
    """Bytes that the first device holds of Keras variables, from the buffers themselves."""
    return sum(_held(_private.tf_variable(variable)) for variable in variables)


def _held(variable: Any) -> int:
    if hasattr(variable, "plan"):
        part = dtensor.unpack(variable.stored())[0]
    elif hasattr(variable, "values"):
        part = tf.convert_to_tensor(variable.values[0])
    else:
        part = tf.convert_to_tensor(variable)
    return math.prod(part.shape.as_list()) * int(part.dtype.size)
