"""Models and optimizers created outside any scope, and use of variables from inside one.

Keras runs them under TensorFlow's default strategy, which does not know those variables. It
delegates such calls to their strategy.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfaccel.distribute import _private, scope
from tfaccel.distribute.files import file_callbacks
from tfaccel.distribute.mixins import mix_in
from tfaccel.errors import ScopeError


class DelegatesToModelStrategy:
    """Mixin for TensorFlow's default strategy."""

    def experimental_distribute_dataset(self, dataset: Any, options: Any = None) -> Any:
        """As the strategy of the calling model."""
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


class WarnsOfBackups:
    """Mixin for TensorFlow's default strategy: warns of backups as other strategies do."""

    def experimental_distribute_dataset(self, dataset: Any, options: Any = None) -> Any:
        """As TensorFlow's."""
        caller = _private.calling_model()
        own = caller is not None and scope.strategy_of(caller.model) is None
        if caller is not None and own and caller.method == "fit" and not caller.validates:
            file_callbacks.warn_of_backups(caller.callbacks)
        return super().experimental_distribute_dataset(dataset, options)  # type: ignore[misc]


class DelegatesVariables:
    """Mixin for its Extended, through which an optimizer creates slots and updates variables."""

    def colocate_vars_with(self, colocate_with_variable: Any) -> Any:
        """As the strategy of the variable."""
        strategy = _strategy_of(colocate_with_variable)
        if strategy is None:
            return super().colocate_vars_with(colocate_with_variable)  # type: ignore[misc]
        return _colocated_with(colocate_with_variable, strategy)

    def update(
        self, var: Any, fn: Any, args: Any = (), kwargs: Any = None, group: bool = True
    ) -> Any:
        """As the strategy of the variable."""
        strategy = _strategy_of(var)
        if strategy is None:
            return super().update(var, fn, args, kwargs, group)  # type: ignore[misc]
        strategy.used = True
        if tf.distribute.get_strategy() is strategy:
            if not tf.distribute.in_cross_replica_context():
                raise ScopeError(
                    f"tfaccel: variable {var.name!r} of this strategy is updated in a replica by "
                    "an optimizer that was created outside its scope; create the optimizer inside "
                    "`with strategy.scope():`."
                )
            return strategy.extended.update(var, fn, args, kwargs, group)
        with strategy.scope():
            return strategy.extended.update(var, fn, args, kwargs, group)


@contextlib.contextmanager
def _colocated_with(variable: Any, strategy: Any) -> Iterator[None]:
    with strategy.scope(), strategy.extended.colocate_vars_with(variable):
        yield


def _strategy_of(variable: Any) -> Any:
    """The tfaccel strategy that created a variable, or None."""
    owner = getattr(variable, "distribute_strategy", None)
    return owner if owner is not None and hasattr(owner, "used") else None


def warn_of_backups_under(strategy: Any) -> None:
    """Makes TensorFlow's default strategy warn of backups that lose the batch; idempotent."""
    if not tf.distribute.has_strategy():
        mix_in(strategy, WarnsOfBackups)


def delegate_default_strategy() -> None:
    """Makes TensorFlow's default strategy delegate to the model's; idempotent."""
    with tf.init_scope():
        default = tf.distribute.get_strategy()
    if not tf.distribute.has_strategy():
        mix_in(default, DelegatesToModelStrategy)
        mix_in(default.extended, DelegatesVariables)
