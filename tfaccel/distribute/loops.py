"""Optimizers in training loops of the user's own, which no `fit` prepares.

Whatever is made under a strategy's scope may be used in such a loop: under `strategy.run`, where
gradients are summed over the replicas before the optimizer clips, tests or accumulates them, or
outside of it, where the model's variables are those of all replicas and the loop is one device's.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfaccel.distribute import _private
from tfaccel.distribute.adapt import adapt
from tfaccel.distribute.optimizer import ReduceFirst


class MadeInScope(ReduceFirst):
    """Mixin for a Keras optimizer that was made under the scope of a strategy of ours."""

    def build(self, variables: Any) -> None:
        """Makes slots beside the variables, also where the scope has been left."""
        strategy = self._distribution_strategy  # type: ignore[attr-defined]
        if tf.distribute.get_strategy() is strategy:
            super().build(variables)  # type: ignore[misc]
            return
        with strategy.scope():
            super().build(variables)  # type: ignore[misc]


def adopt_new_optimizer() -> None:
    """Prepares the optimizer whose first variable is being made, if one is."""
    optimizer = _private.optimizer_being_made()
    if optimizer is not None:
        adapt(optimizer, MadeInScope)
