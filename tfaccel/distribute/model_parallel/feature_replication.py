"""Replicates features for layers that DTensor cannot compute with sharded ones.

A dense layer that is split by columns leaves its features divided over the model axis, and its
partner, which is split by rows, consumes them like that. Most other layers cannot: a convolution
needs all channels, a reshape all dimensions that it folds. While a step is traced, such layers take
and return tensors that are divided over the batch axis at most. A layout only places values, so the
numbers do not change.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf
from tensorflow.experimental import dtensor

from tfaccel.distribute import _private
from tfaccel.distribute.model_parallel.axis_relayout import relayout_calls
from tfaccel.distribute.model_parallel.layout_constraint import constrain_layout
from tfaccel.distribute.replacements import Replacements

# Between the two dense layers of a pair, and inside attention: these keep features divided.
_ELEMENTWISE = (
    keras.layers.Activation,
    keras.layers.Add,
    keras.layers.Dense,
    keras.layers.Dropout,
    keras.layers.EinsumDense,
    keras.layers.Identity,
    keras.layers.InputLayer,
    keras.layers.LayerNormalization,
    keras.layers.Multiply,
    keras.layers.ReLU,
    keras.layers.Softmax,
)
# Of keras_hub, which may not be installed: rotates the features of each head separately.
_ELEMENTWISE_NAMES = {"RotaryEmbedding"}
_ELEMENTWISE_ACTIVATIONS = {"gelu", "linear", "relu", "sigmoid", "silu", "softmax", "tanh"}

# These mix rows, in operations that DTensor cannot divide over the batch: every device computes all
# of them.
_REPLICATED = (
    keras.layers.CutMix,
    keras.layers.MixUp,
    keras.layers.TimeDistributed,
)

_REPLICATED_ACTIVATIONS = {"sparsemax"}  # the gradient of a sort scatters to rows of all devices

# These call other layers inside loops: they gather features once, not in each iteration.
_OUTERMOST_ONLY = (keras.layers.RNN, keras.layers.Wrapper)


# In a relayout, the spec of a dimension that keeps its sharding: a step is traced once for batches
# that divide and for those that do not.
_UNCHANGED = dtensor.MATCH


@contextmanager
def replicated_features(
    model: Any, mesh: Any, model_axis: str | None, losses: Iterable[Any] = ()
) -> Iterator[None]:
    """While a step is traced, layers of `model` that need whole features get them.

    Args:
        model: whose step it is, or a layer.
        mesh: a DTensor mesh.
        model_axis: the axis that divides the model unless a rule names another.
        losses: that the step calls, besides those that the model was compiled with.
    """
    rows = functools.partial(_replicate_features, mesh=mesh, rows=_UNCHANGED)
    whole = functools.partial(_replicate_features, mesh=mesh, rows=dtensor.UNSHARDED)
    with Replacements() as replacements:
        for layer in _layers_to_replicate(model):
            name = "activation" if isinstance(layer, _ELEMENTWISE) else "call"
            activation = getattr(getattr(layer, "activation", None), "__name__", None)
            alone = isinstance(layer, _REPLICATED) or activation in _REPLICATED_ACTIVATIONS
            place = whole if alone else rows
            replacements.replace(layer, name, _with_layout(getattr(layer, name), place))
        # One instance may be the loss of several outputs.
        for loss in {id(e): e for e in (*_private.compiled_losses(model), *losses)}.values():
            place = whole if isinstance(loss, keras.losses.CTC) else rows
            replacements.replace(loss, "call", _with_layout(loss.call, place))
        for layer, call in relayout_calls(model, mesh, model_axis):
            replacements.replace(layer, "call", call)
        if isinstance(model, keras.Model):
            metrics = _with_layout(model.compute_metrics, rows)
            replacements.replace(model, "compute_metrics", metrics)
        yield


def _layers_to_replicate(model: keras.Model) -> list[keras.layers.Layer]:
    layers = _private.layers_of(model)
    as_one = [layer for layer in layers if isinstance(layer, _OUTERMOST_ONLY)]
    inside = {id(inner) for layer in as_one for inner in _private.layers_of(layer)[1:]}
    return [
        layer
        for layer in layers
        if id(layer) not in inside
        and (isinstance(layer, _OUTERMOST_ONLY) or not _private.layers_of(layer)[1:])
        and not isinstance(layer, keras.Model)
        and not _accepts_sharded_features(layer)
    ]


def _accepts_sharded_features(layer: keras.layers.Layer) -> bool:
    if type(layer).__name__ in _ELEMENTWISE_NAMES:
        return True
    activation = getattr(layer, "activation", None)
    name = getattr(activation, "__name__", None)
    return isinstance(layer, _ELEMENTWISE) and (
        activation is None or name in _ELEMENTWISE_ACTIVATIONS
    )


def _with_layout(function: Callable[..., Any], place: Callable[[Any], Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def placed(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = tf.nest.map_structure(place, (args, kwargs))
        return tf.nest.map_structure(place, function(*args, **kwargs))

    return placed


def _replicate_features(value: Any, mesh: Any, rows: str) -> Any:
    """`value` with whole features, and its gradient too."""
    if not isinstance(value, tf.Tensor) or not value.shape.rank:
        return value
    return constrain_layout(value, [rows, *[dtensor.UNSHARDED] * (value.shape.rank - 1)], mesh)
