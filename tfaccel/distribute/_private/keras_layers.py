"""Keras's layers: those inside a model, their calls, states, masks and paths.

Seen with Keras 3.15, watched by `tests/distribute/test_private.py` and, where a layout follows from
them, by `tests/model_parallel/test_private.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras

# What Keras rematerializes with is a function of its backend.
from keras.src.backend import core

# The stack of Keras's name scopes knows which layers are being built around a variable; on a mesh
# its layout follows from them. Only the path and the layer are public, once all is built.
from keras.src.backend.common import global_state
from keras.src.backend.common.name_scope import current_path

# Keras asks for shapes in a scope without state.
from keras.src.backend.common.stateless_scope import in_stateless_scope

# Whether a model's `call` is Keras's own, and how it calls its layers.
from keras.src.models.functional import Functional, operation_fn

__all__ = [
    "call_contexts",
    "functional_of",
    "graph_nodes",
    "in_call_contexts",
    "in_stateless_scope",
    "keras_mask",
    "layers_being_built",
    "layers_of",
    "own_states",
    "run_function",
    "set_keras_mask",
    "set_remat",
    "variable_path",
]


def layers_of(model: keras.Model) -> list[keras.layers.Layer]:
    """All layers of `model`, including nested ones."""
    return list(model._flatten_layers())


def own_states(owner: Any) -> list[Any]:
    """The `keras.Variable`s that a layer (without gradients) or a metric owns directly.

    The public lists include nested ones and the states of seed generators.
    """
    if isinstance(owner, keras.metrics.Metric):
        return list(owner._variables)
    return list(owner._non_trainable_variables)


def functional_of(model: keras.Model) -> Any:
    """The functional model of a Sequential or functional `model`, or None for any other.

    Also None for a functional one whose class overrides `call`.
    """
    functional = model._functional if isinstance(model, keras.Sequential) else model
    if not hasattr(functional, "_nodes_by_depth"):
        return None
    return functional if type(functional).call is Functional.call else None


def run_function(function: keras.Function, inputs: list[Any], training: Any) -> Any:
    """The output of a Function, passing `training` to its layers as a functional model does.

    `Function.call` does not pass it to the layers.
    """
    return function._run_through_graph(
        inputs, operation_fn=lambda operation: operation_fn(operation, training=training)
    )


def graph_nodes(model: keras.Model) -> list[Any]:
    """Every layer call that makes up a Sequential or functional model.

    A layer also records its calls in other models.
    """
    return [node for nodes in model._nodes_by_depth.values() for node in nodes]


def keras_mask(tensor: Any) -> Any:
    """The mask that Keras attaches to a layer's output or to losses, or None."""
    return getattr(tensor, "_keras_mask", None)


def set_keras_mask(tensor: Any, mask: Any) -> None:
    """Attaches a mask to losses: Keras's reductions skip masked values."""
    tensor._keras_mask = mask


def variable_path(name: str | None) -> str:
    """The Keras path of the variable being created, such as ``"mlp/dense/kernel"``."""
    return "/".join(part for part in (current_path(), name or "variable") if part)


def layers_being_built() -> tuple[keras.layers.Layer, ...]:
    """The layers whose `build` is running, the innermost last."""
    entries = global_state.get_global_attribute("name_scope_stack") or []
    return tuple(e.caller for e in entries if isinstance(e.caller, keras.layers.Layer))


def call_contexts() -> dict[str, Any]:
    """What Keras keeps of the layer calls that are running: `training`, the autocast of weights."""
    found = {name: global_state.get_global_attribute(name) for name in _CALL_CONTEXTS}
    return found | {"name_scope_stack": list(found["name_scope_stack"] or ())}


_CALL_CONTEXTS = ("current_call_ctx", "autocast_scope", "name_scope_stack")


@contextlib.contextmanager
def in_call_contexts(contexts: Mapping[str, Any]) -> Iterator[None]:
    """Inside, layers are called as where `call_contexts` was, in this thread."""
    before = call_contexts()
    for name, value in contexts.items():
        global_state.set_global_attribute(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            global_state.set_global_attribute(name, value)


def set_remat(function: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replaces what `keras.remat` calls, for this process."""
    core.remat = function
