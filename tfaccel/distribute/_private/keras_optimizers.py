"""Keras's optimizers: their strategy, their variables and slots, and what they accumulate.

Seen with Keras 3.15, watched by `tests/distribute/test_private.py` and, where they divide, by
`tests/model_parallel/test_private.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import keras
import tensorflow as tf

# Keras's operations, which its optimizers use.
from keras.src import backend as keras_backend
from keras.src import ops as keras_ops

from tfaccel.distribute._private.tf_variables import tf_variable
from tfaccel.distribute.replacements import replaced

__all__ = [
    "BeforeClipping",
    "accumulation",
    "adam_slots",
    "adopt_optimizer",
    "division_replaced",
    "optimizer_key",
    "trained_by",
    "updates_unconditional",
]


class BeforeClipping:
    """Mixin for a Keras optimizer that must see gradients accumulated but not yet clipped.

    Keras accumulates and clips in one method. The only name called between the two, and only in a
    step that updates, is `_clip_gradients`.
    """

    def before_clipping(self, grads: list[Any]) -> list[Any]:
        """What to clip and apply in place of these gradients."""
        raise NotImplementedError

    def _clip_gradients(self, grads: Any) -> Any:
        return super()._clip_gradients(self.before_clipping(list(grads)))  # type: ignore[misc]


def accumulation(optimizer: Any) -> tuple[Any, list[Any]]:
    """The count of all steps of `optimizer`, and what it has accumulated for each variable.

    The public `iterations` counts updates, and so does not show a partial accumulation.
    """
    gradients = getattr(optimizer, "_accumulated_gradients", None) or []
    return optimizer._iterations, [v for v in gradients if v is not None]


def adam_slots(optimizer: keras.optimizers.Adam, variable: Any) -> tuple[Any, Any]:
    """The slots that Adam keeps for a variable; its public list does not map them to variables."""
    index = optimizer._get_variable_index(variable)
    return optimizer._momentums[index], optimizer._velocities[index]


def adopt_optimizer(optimizer: Any, strategy: tf.distribute.Strategy) -> None:
    """Ties an optimizer to `strategy`, even if it was created before the scope was entered.

    Keras remembers `tf.distribute.get_strategy()` when the optimizer is constructed and updates
    variables through it; there is no public way to set it later.
    """
    optimizer._distribution_strategy = strategy


def optimizer_key(optimizer: Any, variable: keras.Variable) -> Any:
    """The key of a variable in an optimizer's dicts and sets; None where it has none."""
    if tf_variable(variable) is None or not hasattr(optimizer, "_var_key"):
        return None
    return optimizer._var_key(variable)


def trained_by(optimizer: Any) -> list[Any]:
    """The variables that `optimizer` was built for; its public `variables` are its own."""
    return list(getattr(optimizer, "_trainable_variables", None) or ())


def division_replaced(divide: Callable[[Any, Any, Any], Any]) -> AbstractContextManager[None]:
    """Makes Keras's operations divide by `divide`, whose first argument is Keras's own division.

    That of Keras 3.15 checks in a `tf.cond` whether the divisor of `tf.IndexedSlices` has a zero,
    and has no option to skip it; optimizers run it on their divisors.
    """
    module = keras_backend.numpy
    return replaced(module, "divide", functools.partial(divide, module.divide))


def updates_unconditional() -> AbstractContextManager[None]:
    """Inside, an optimizer of Keras's updates without a condition.

    It updates on a condition if it accumulates gradients (the step is a multiple) or scales the
    loss (all of them are finite). Elsewhere conditions stay.
    """
    plain = keras_ops.cond

    def cond(pred: Any, true_fn: Callable[[], Any], false_fn: Callable[[], Any]) -> Any:
        if true_fn.__module__.startswith("keras.src.optimizers."):
            return true_fn()
        return plain(pred, true_fn, false_fn)

    return replaced(keras_ops, "cond", cond)
