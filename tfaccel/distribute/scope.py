"""Whether a model was made under the strategy that it runs under."""

from __future__ import annotations

from typing import Any

import keras

from tfaccel.distribute.optimizer import optimizers_of
from tfaccel.errors import ScopeError


def check(model: keras.Model, strategy: Any) -> None:
    """Checks every part of `model`.

    Raises:
        ScopeError: when one was made outside the scope of `strategy`.
    """
    for variable in model.weights:
        _check(variable, strategy, f"model {model.name!r}", "build (and quantize) the model")
    for optimizer in optimizers_of(model):
        for variable in optimizer.variables:
            _check(variable, strategy, f"optimizer {optimizer.name!r}", "make the optimizer")
    for metric in model.metrics:
        for variable in metric.variables:
            _check(variable, strategy, f"metric {metric.name!r}", "call model.compile(...)")


def _check(variable: Any, strategy: Any, what: str, do: str) -> None:
    if getattr(variable.value, "distribute_strategy", None) is not strategy:
        raise ScopeError(
            f"tfaccel: {what} was made outside the scope of this strategy (variable "
            f"{variable.path!r} is on one device only); {do} inside `with strategy.scope():`."
        )
