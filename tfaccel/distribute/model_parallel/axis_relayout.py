"""Relayouts between axes, for kernels that lie over two of them: rows over x, columns over y.

Such a layer leaves its features over y, and the next one, whose rows are over x, cannot use them
like that: DTensor multiplies only operands with matching sharding. While a step is traced, the
features that go into such a layer are moved to the axis of its rows. Kernels over one axis need
none of this.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf
from tensorflow.experimental import dtensor

from tfaccel.distribute import _private
from tfaccel.distribute.model_parallel.auto_layout import einsum_terms
from tfaccel.distribute.model_parallel.layout_constraint import constrain_layout
from tfaccel.distribute.model_parallel.layout_map import Axes


def relayout_calls(
    model: keras.Model, mesh: Any, model_axis: str | None
) -> Iterator[tuple[Any, Any]]:
    """The layers that need their features moved, each with a `call` that does so.

    Args:
        model: whose step is being traced.
        mesh: a DTensor mesh.
        model_axis: the axis that needs no relayout, as all features are over it or whole.
    """
    kernels = [
        (layer, axes)
        for layer in _private.layers_of(model)
        if isinstance(layer, (keras.layers.Dense, keras.layers.EinsumDense))
        and (axes := _kernel_axes(layer)) is not None
    ]
    named = {axis for _, axes in kernels for axis in axes if axis is not None}
    if named <= {model_axis}:
        return
    for layer, axes in kernels:
        yield layer, _with_relayout(layer.call, *feature_axes(layer, axes), mesh)


def feature_axes(layer: Any, kernel: Axes) -> tuple[Axes, Axes]:
    """The axes of the last dimensions of the inputs of `layer`, and of its outputs.

    Args:
        layer: a Dense or EinsumDense layer.
        kernel: the axes of its kernel.

    >>> feature_axes(keras.layers.Dense(8), ("x", "y"))
    (('x',), ('y',))
    >>> feature_axes(keras.layers.EinsumDense("abc,cde->abde", (None, 2, 4)), ("y", "x", None))
    (('y',), ('x', None))
    >>> feature_axes(keras.layers.EinsumDense("abde,dec->abc", (None, 8)), ("x", None, "y"))
    (('x', None), ('y',))
    """
    if isinstance(layer, keras.layers.Dense):
        return kernel[:1], kernel[1:]
    inputs, letters, outputs = einsum_terms(layer.equation)
    over = dict(zip(letters, kernel, strict=True))
    return _over(over, inputs), _over(over, outputs)


def _over(axes: Mapping[str, str | None], letters: str) -> Axes:
    first = min((i for i, letter in enumerate(letters) if letter in axes), default=len(letters))
    return tuple(axes.get(letter) for letter in letters[first:])


def _kernel_axes(layer: Any) -> Axes | None:
    for variable in layer.weights:
        plan = getattr(variable.value, "plan", None)
        if variable.name == "kernel" and plan is not None:
            return plan.compute  # type: ignore[no-any-return]
    return None


def _with_relayout(
    call: Callable[..., Any], into: Axes, out: Axes, mesh: Any
) -> Callable[..., Any]:
    @functools.wraps(call)
    def moved(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return _relayout_features(
            call(_relayout_features(inputs, into, mesh), *args, **kwargs), out, mesh
        )

    return moved


def _relayout_features(value: Any, last: Axes, mesh: Any) -> Any:
    if not isinstance(value, tf.Tensor) or not value.shape.rank:
        return value
    between = (None,) * (value.shape.rank - len(last) - 1)
    over = [axis or dtensor.UNSHARDED for axis in (*between, *last)]
    return constrain_layout(value, [dtensor.MATCH, *over], mesh)
