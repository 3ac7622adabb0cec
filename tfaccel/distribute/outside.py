"""Models that were made and compiled outside every scope, of parts that were made inside one.

Keras runs them under TensorFlow's default strategy, which knows nothing of their variables. It
hands them to the strategy of those.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfaccel.distribute import _private, scope
from tfaccel.distribute.adapt import adapt


class HandsOver:
    """Mixin for TensorFlow's default strategy."""

    def experimental_distribute_dataset(self, dataset: Any, options: Any = None) -> Any:
        """As the strategy of the model that asks."""
        caller = _private.calling_model()
        strategy = scope.strategy_of(caller.model) if caller is not None else None
        if caller is None or strategy is None:
            return super().experimental_distribute_dataset(dataset, options)  # type: ignore[misc]
        _private.set_strategy(caller.model, strategy)
        return strategy.experimental_distribute_dataset(dataset, options)

    def run(self, fn: Any, args: Any = (), kwargs: Any = None, options: Any = None) -> Any:
        """As the strategy of the model whose step it is."""
        keras_asks = _private.is_keras_function(fn)
        model = getattr(fn, "__self__", None) or _private.predicting_model() if keras_asks else None
        strategy = scope.strategy_of(model) if model is not None else None
        if strategy is None:
            return super().run(fn, args, kwargs, options)  # type: ignore[misc]
        _private.set_strategy(model, strategy)
        return strategy.run(fn, args, kwargs, options)


def hand_over() -> None:
    """Makes TensorFlow's default strategy hand over; doing it twice is doing it once."""
    with tf.init_scope():
        default = tf.distribute.get_strategy()
    if not tf.distribute.has_strategy():
        adapt(default, HandsOver)
