"""Whether a model has custom components, whose use of the rows of a batch is unknown.

These are its own steps, layers, losses and metrics, and functions passed to Keras's layers: an
activation or an activity regularizer may compare the rows of a batch, and so may an operation
between the layers of a functional model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras

from tfaccel.distribute import _private
from tfaccel.distribute.gradients import is_custom_step

_LIBRARIES = ("keras.", "keras_hub.", "tfaccel.")
_OF_WEIGHTS = ("initializer", "constraint", "regularizer")
_ARITHMETIC = ("Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Negative", "Power")


def has_custom_step(
    model: keras.Model, kinds: tuple[str, ...] = ("train", "test", "predict")
) -> bool:
    """Whether a step of `model` is not Keras's.

    Args:
        model: any.
        kinds: of the steps to consider: ``"train"``, ``"test"``, ``"predict"``.
    """
    names = [f"{kind}_step" for kind in kinds]
    return any(getattr(model.__class__, name) is not getattr(keras.Model, name) for name in names)


def has_custom_parts(model: keras.Model, fn: Any) -> bool:
    """Whether a model has a part that is not Keras's, besides functions of only its weights.

    Args:
        model: compiled, if `fn` trains or tests.
        fn: its bound `train_step`, `test_step` or `predict_step`.
    """
    if is_custom_step(fn):
        return True
    if any(not _is_standard_layer(layer) for layer in _private.layers_of(model)):
        return True
    if any(not _is_standard(loss) for loss in _private.compiled_losses(model)):
        return True
    metrics = [*model.metrics, *_private.compiled_metrics(model)]
    return any(not _is_standard(metric) for metric in metrics)


def _is_standard_layer(layer: Any) -> bool:
    if isinstance(layer, keras.layers.Lambda) or not _is_standard(layer):
        return False
    if _is_over_rows(layer):
        return False
    if any(not _from_library(function) for function in _functions(layer)):
        return False
    return all(map(_is_standard_operation, getattr(layer, "operations", ())))


def _is_standard_operation(operation: Any) -> bool:
    """Whether an operation between the layers of a functional model treats each row separately."""
    return isinstance(operation, keras.layers.Layer) or type(operation).__name__ in _ARITHMETIC


def _is_over_rows(layer: Any) -> bool:
    """Whether a layer is configured to work along the axis of rows, as `Softmax(axis=0)`."""
    for name in ("axis", "axes"):
        axis = getattr(layer, name, None)
        axes = axis if isinstance(axis, (list, tuple)) else [axis]
        if any(type(each) is int and each == 0 for each in axes):
            return True
    return False


def _functions(layer: Any) -> Iterator[Any]:
    """The functions passed to `layer` that apply to rows: activations, activity regularizers."""
    if isinstance(layer, keras.Model):
        return  # its contents were created by its trainer
    for name, value in vars(layer).items():
        if name.endswith(_OF_WEIGHTS) and name != "activity_regularizer":
            continue
        if callable(value) and not isinstance(value, (type, keras.layers.Layer)):
            yield value


def _is_standard(part: Any) -> bool:
    inner = getattr(part, "fn", None) or getattr(part, "_fn", None)
    if inner is not None and not _from_library(inner):
        return False
    return _from_library(part.__class__)


def _from_library(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).startswith(_LIBRARIES)
