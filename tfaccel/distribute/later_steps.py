"""What later steps compute otherwise than the first one.

A weight that a callback raises from 0, a counter that a warm-up divides or that a `tf.cond` asks
for: the first step does not compute the part that they turn on. The first-step check compares a
second one, with these as they may be later.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfaccel.distribute import _private
from tfaccel.distribute.optimizer import optimizers_of

_STEPS = 100_001  # behind the usual warm-ups, and odd: of two steps in turn, the other
_PART = 0.5  # between what a weight of 0 and one of 1 leave out


def later_values(
    model: keras.Model, saved: Iterable[tuple[Any, np.ndarray]], copies_of: Any
) -> list[tuple[Any, Any]]:
    """The copies of variables that turn something on or off, with other values.

    These are single numbers that are not trained and are 0 or 1 before the first step: the user's
    own, and the optimizers' counters of steps.

    Args:
        model: whose step it is.
        saved: copies of its variables, and their values.
        copies_of: gives the copies of a variable in this process.
    """
    optimizers = optimizers_of(model)
    metrics = [v for m in model.metrics for v in m.variables]
    kept = _ids([*metrics, *(v for o in optimizers for v in o.variables)], copies_of)
    kept -= _ids([o.iterations for o in optimizers], copies_of)
    values: list[tuple[Any, Any]] = []
    for copy, value in saved:
        if value.ndim or copy.trainable or id(copy) in kept or _is_part(copy):
            continue
        if np.issubdtype(value.dtype, np.integer) and value == 0:
            values.append((copy, np.asarray(_STEPS).astype(value.dtype)))
        elif np.issubdtype(value.dtype, np.floating) and value in (0, 1):
            values.append((copy, np.asarray(_PART, value.dtype)))
    return values


def names(values: Iterable[tuple[Any, Any]]) -> str:
    """The variables of which these are copies, in words."""
    each = {copy.name.partition(":")[0].partition("/replica")[0] for copy, _ in values}
    return " and ".join(repr(name) for name in sorted(each))


def _is_part(copy: Any) -> bool:
    """Whether a variable's value is only known from all copies, such as their sum."""
    return bool(copy.synchronization == tf.VariableSynchronization.ON_READ)


def _ids(variables: Iterable[Any], copies_of: Any) -> set[int]:
    return {id(copy) for v in variables for copy in copies_of(_private.tf_variable(v))}
