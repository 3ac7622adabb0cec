"""Whole values of a model's variables on the chief, for a file that it writes for all processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from tfaccel.distribute.optimizer import optimizers_of
from tfaccel.distribute.replacements import replaced


@contextmanager
def gathered_to_chief(model: keras.Model, strategy: Any) -> Iterator[None]:
    """Gathers every variable of `model` and its optimizers in one order on all processes.

    All must call. Without one order, the processes would deadlock.

    Args:
        model: of this strategy.
        strategy: of a mesh over several processes. While this context is active, the chief reads
            gathered values.
    """
    values: dict[int, np.ndarray] = {}
    variables = [*model.variables, *(v for o in optimizers_of(model) for v in o.variables)]
    with replaced(strategy, "gathered_values", None):
        for variable in {id(v.value): v.value for v in variables}.values():
            value = variable.numpy()
            if strategy.cluster.is_chief:
                values[id(variable)] = value
    with replaced(strategy, "gathered_values", values):
        yield
