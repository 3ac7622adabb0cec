"""How many steps Keras runs in one call (`steps_per_execution`), where the user has not set it.

A TPU waits for Python between two calls. Keras's default is one call per step.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfaccel.distribute._private import Caller

MAX_STEPS = 32
"""More would save little, and rarely update progress."""

_HOOKS = tuple(
    f"on_{kind}batch_{when}" for kind in ("", "train_", "test_") for when in ("begin", "end")
)
_COUNTS = ("save_freq", "update_freq")
"""Of Keras's callbacks: ``"epoch"``, or a number of batches."""


class StepsPerExecution:
    """The number of steps in a call, for each model that a strategy trains.

    Args:
        fixed: the number for all of them; None chooses it.
    """

    def __init__(self, fixed: int | None = None) -> None:
        self._fixed = fixed
        self._chosen: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def prepare(self, caller: Caller, possible: bool) -> int:
        """Settles the number for a method of a model that is about to run.

        The number that a model was compiled with takes precedence, unless it is Keras's default of
        1. It is still the one saved with the model.

        Args:
            caller: the method.
            possible: whether its batches can be taken in one call.

        Returns:
            The number of steps to provide batches for per call; 1 where Keras takes each
            separately.
        """
        model, now = caller.model, int(caller.model.steps_per_execution)
        possible = possible and _keras_makes_steps(model)
        if caller.validates or (now > 1 and now != self._chosen.get(model)):
            return now if possible else 1
        steps = 1
        if possible:
            batches = caller.epoch.num_batches
            steps = self._fixed or choose(batches, caller.limits, caller.callbacks)
        if steps != now:
            self._chosen[model] = model.steps_per_execution = steps
            # Keras creates them for a number.
            model.train_function = model.test_function = model.predict_function = None
        caller.epoch.steps_per_execution = steps
        return steps


def choose(batches: int | None, limits: Sequence[int | None], callbacks: Any) -> int:
    """The number of steps in a call.

    Args:
        batches: how many the data has; None if unknown.
        limits: `steps_per_epoch` and the like. Keras runs whole calls, and so more steps than a
            limit that does not divide.
        callbacks: what `fit` was given.

    Returns:
        At most `MAX_STEPS`; 1 when a callback wants to see each batch.

    >>> choose(1000, [], None), choose(20, [], None), choose(31, [], None), choose(97, [], None)
    (25, 20, 31, 32)
    >>> choose(1000, [50, None, 20], None), choose(None, [], None)
    (10, 32)
    """
    if any(_sees_batches(callback) for callback in _each(callbacks)):
        return 1
    most = min(MAX_STEPS, batches or MAX_STEPS)
    common = math.gcd(*(limit for limit in limits if limit))
    divides = max(n for n in range(1, most + 1) if (common or batches or most) % n == 0)
    # Data may end within a call: a remainder only looks odd in a progress bar.
    return divides if common or divides > most // 2 else most


def _keras_makes_steps(model: keras.Model) -> bool:
    """Whether Keras runs the step, rather than a function that the model itself creates."""
    return all(
        _is_keras_hook(getattr(model, name))
        for name in ("make_train_function", "make_test_function")
    )


def _each(callbacks: Any) -> Iterable[Any]:
    instances = getattr(callbacks, "callbacks", callbacks)
    return tf.nest.flatten(instances) if instances else ()


def _sees_batches(callback: Any) -> bool:
    """Whether a callback acts at batches of its choice."""
    if getattr(callback, "sees_whole_calls", False):
        return False
    if any(isinstance(getattr(callback, name, None), int) for name in _COUNTS):
        return True
    hooks = (getattr(callback, name, None) for name in _HOOKS)
    return any(hook is not None and not _is_keras_hook(hook) for hook in hooks)


def _is_keras_hook(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("keras.")
