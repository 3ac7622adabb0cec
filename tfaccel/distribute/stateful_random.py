"""Operations that draw random numbers from a state inside TensorFlow.

That state can be neither read nor set: such an operation draws other numbers when it is computed
again, and so does a run that resumes. The random operations of Keras take a seed as a tensor
instead, and those of a `tf.random.Generator` have their state in a variable.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfaccel.distribute import _private

TYPES = frozenset({"RandomUniform", "RandomStandardNormal", "TruncatedNormal", "RandomUniformInt",
                   "RandomShuffle", "RandomGamma", "RandomPoissonV2", "Multinomial"})  # fmt: skip
"""The types of operations that draw other numbers each time that they run."""


def first_in_step(function: Callable[..., Any] | None) -> tf.Operation | None:
    """The first of them in the traced step of a model, including the functions that it calls.

    Only reads existing traces.

    Args:
        function: as `model.train_function`, also wrapped (`functools.wraps`).

    Returns:
        None where there is none, where the step runs eagerly, or where none has been traced.
    """
    if function is None:
        return None
    step = _private.step_function(inspect.unwrap(function, stop=_is_step))
    traced = [] if step is None else _private.traced_graphs(step)
    graphs = [each for graph in traced for each in (graph, *_private.library_graphs(graph))]
    operations = (op for graph in graphs for op in graph.get_operations())
    return next((op for op in operations if op.type in TYPES), None)


def _is_step(function: Any) -> bool:
    return isinstance(function, tf.types.experimental.PolymorphicFunction)
