"""Keras's layers: those inside a model, their calls, their states, masks and places.

Seen with Keras 3.15, watched by `tests/distribute/test_private.py` and, where a layout follows from
them, by `tests/model_parallel/test_private.py`.
"""

from __future__ import annotations

from typing import Any

import keras

# The stack of Keras's name scopes knows which layers are being built around a variable; under a
# mesh its layout follows from them. Public are only the path and the layer once all is made.
from keras.src.backend.common import global_state
from keras.src.backend.common.name_scope import current_path

# Whether a model's `call` is Keras's own, and how that calls its layers.
from keras.src.models.functional import Functional, operation_fn

__all__ = [
    "functional_of",
    "graph_nodes",
    "keras_mask",
    "layers_being_built",
    "layers_of",
    "own_states",
    "run_function",
    "set_keras_mask",
    "variable_path",
]


def layers_of(model: keras.Model) -> list[keras.layers.Layer]:
    """All layers of `model`, those inside other layers too."""
    return list(model._flatten_layers())


def own_states(owner: Any) -> list[Any]:
    """The `keras.Variable`s that a layer keeps without a gradient, or a metric, itself.

    Public are only those of all that is inside, with the states of seed generators.
    """
    if isinstance(owner, keras.metrics.Metric):
        return list(owner._variables)
    return list(owner._non_trainable_variables)


def functional_of(model: keras.Model) -> Any:
    """The functional model that a Sequential or functional `model` is, or None of another.

    None too of a functional one whose `call` is its class's own.
    """
    functional = model._functional if isinstance(model, keras.Sequential) else model
    if not hasattr(functional, "_nodes_by_depth"):
        return None
    return functional if type(functional).call is Functional.call else None


def run_function(function: keras.Function, inputs: list[Any], training: Any) -> Any:
    """What a Function gives, whose layers are told whether they train, as a functional model does.

    `Function.call` passes nothing on to the layers.
    """
    return function._run_through_graph(
        inputs, operation_fn=lambda operation: operation_fn(operation, training=training)
    )


def graph_nodes(model: keras.Model) -> list[Any]:
    """Every call of a layer that a Sequential or functional model is made of.

    A layer knows also those of its calls that are in other models.
    """
    return [node for nodes in model._nodes_by_depth.values() for node in nodes]


def keras_mask(tensor: Any) -> Any:
    """The mask Keras hangs on a layer's output or on losses, or None."""
    return getattr(tensor, "_keras_mask", None)


def set_keras_mask(tensor: Any, mask: Any) -> None:
    """Hangs a mask on losses: Keras's reductions leave out what it does not hold."""
    tensor._keras_mask = mask


def variable_path(name: str | None) -> str:
    """The Keras path of the variable that is being made now, such as ``"mlp/dense/kernel"``."""
    return "/".join(part for part in (current_path(), name or "variable") if part)


def layers_being_built() -> tuple[keras.layers.Layer, ...]:
    """The layers whose `build` is running, the innermost last."""
    entries = global_state.get_global_attribute("name_scope_stack") or []
    return tuple(e.caller for e in entries if isinstance(e.caller, keras.layers.Layer))
