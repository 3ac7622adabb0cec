"""Variables that a model of a scope makes at its first call, after the scope has been left.

A subclassed model, or a Sequential without an Input, has no variables when it is created. A script
that writes its own loop may first call it anywhere. TensorFlow would make the variables on one
device, where the optimizer of the scope cannot update them.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfaccel.distribute import _private

_OPTIONS = (
    *("initial_value", "trainable", "validate_shape", "name", "dtype", "constraint"),
    *("synchronization", "aggregation", "shape"),
)


def make_in_scope_of_model() -> None:
    """Makes such variables under the strategy of their model; idempotent."""
    if tf.executing_eagerly():
        _private.create_variables_by(_create)


def _create(next_creator: Any, **kwargs: Any) -> Any:
    strategy = None if tf.distribute.has_strategy() else _strategy_of_caller()
    if strategy is None:
        return next_creator(**kwargs)
    with strategy.scope():
        return tf.Variable(**{name: kwargs[name] for name in _OPTIONS if name in kwargs})


def _strategy_of_caller() -> Any:
    """The tfaccel strategy in whose scope a model that is being called was created, or None."""
    for layer in _private.layers_being_built():
        if _private.is_trainer(layer):
            strategy = _private.strategy_at_compile(layer)
            if hasattr(strategy, "used"):
                return strategy
    return None
