"""Derives layouts from the layers themselves, as Megatron-LM splits a transformer.

Attention is split over its heads, and its output projection over its inputs; a pair of dense layers
by columns, then by rows, so that nothing is communicated between the two; embeddings and the output
head over the vocabulary; everything else is replicated (https://arxiv.org/abs/1909.08053). Any
layout gives the same numbers: a guess that does not suit a model costs only speed.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import keras

from tfaccel.distribute.model_parallel.layout_map import Axes
from tfaccel.distribute.model_parallel.mesh import MeshShape

# Layers whose operations need whole weights: DTensor's convolution does not support sharded
# filters, nor its fused batch normalization sharded statistics.
_GATHERED = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
    keras.layers.BatchNormalization,
)


def gathers_weights(layers: Sequence[Any]) -> bool:
    """Whether the innermost of `layers` gathers its weights before it computes."""
    return bool(layers) and isinstance(layers[-1], _GATHERED)


class AutoLayout:
    """Splits variables over the model axis of `mesh`, in creation order."""

    def __init__(self, mesh: MeshShape) -> None:
        self._axis = mesh.model_axis
        self._size = mesh.sizes[self._axis] if self._axis else 1
        self._open_columns: int | None = None  # the width of a column-split layer still unpaired
        # Of kernels, for the bias that follows; weak, since the id of a layer may be reused.
        self._split: weakref.WeakKeyDictionary[Any, Axes] = weakref.WeakKeyDictionary()

    def end_model(self) -> None:
        """Forgets a layer that is still unpaired: the next ones belong to another model."""
        self._open_columns = None

    def axes(self, path: str, shape: tuple[int, ...], layers: Sequence[Any]) -> tuple[Axes, str]:
        """The axes of a new variable, and the reason.

        Args:
            path: its Keras path.
            shape: its shape.
            layers: the layers being built around it, the innermost last.
        """
        layer = layers[-1] if layers else None
        name = path.rpartition("/")[2]
        whole: Axes = (None,) * len(shape)
        if self._axis is None or layer is None:
            return whole, "replicated"
        if isinstance(layer, keras.layers.Embedding) and len(shape) == 2:
            return self._embedding(name, shape)
        if isinstance(layer, keras.layers.EinsumDense):
            return self._einsum(layer, name, shape)
        if isinstance(layer, keras.layers.Dense):
            return self._dense(layer, name, shape)
        return whole, "replicated"

    def _fits(self, size: int) -> bool:
        return size % self._size == 0

    def _embedding(self, name: str, shape: tuple[int, ...]) -> tuple[Axes, str]:
        vocabulary = 1 if name.startswith("reverse") else 0
        for dim, reason in ((vocabulary, "over the vocabulary"), (1 - vocabulary, "over features")):
            if self._fits(shape[dim]):
                return _axes_at(dim, 2, self._axis), reason
        return (None, None), "replicated: does not divide"

    def _dense(self, layer: Any, name: str, shape: tuple[int, ...]) -> tuple[Axes, str]:
        if name != "kernel":
            return self._bias(layer, shape)
        rows, columns = shape
        return self._pair(layer, rows, columns, (0, 1), 2)

    def _pair(
        self, layer: Any, rows: int, columns: int, dims: tuple[int, int], rank: int
    ) -> tuple[Axes, str]:
        """A kernel from `rows` to `columns` features: the second of a pair, else the first."""
        if self._open_columns == rows and self._fits(rows):
            self._open_columns = None
            self._split[layer] = (None,)
            return _axes_at(dims[0], rank, self._axis), "rows"
        if self._fits(columns):
            self._open_columns = columns
            self._split[layer] = (self._axis,)
            return _axes_at(dims[1], rank, self._axis), "columns"
        self._open_columns = None
        self._split[layer] = (None,)
        return (None,) * rank, "replicated: does not divide"

    def _bias(self, layer: Any, shape: tuple[int, ...]) -> tuple[Axes, str]:
        of_kernel = self._split.get(layer, (None,))
        if any(of_kernel) and len(of_kernel) == len(shape):
            return of_kernel, "as its kernel"
        return (None,) * len(shape), "replicated"

    def _einsum(self, layer: Any, name: str, shape: tuple[int, ...]) -> tuple[Axes, str]:
        if name != "kernel":
            return self._bias(layer, shape)
        inputs, kernel, output = einsum_terms(layer.equation)
        summed = [c for c in inputs if c in kernel and c not in output]
        created = [c for c in output if c in kernel and c not in inputs]
        if len(kernel) != len(shape) or not summed or not created:
            return (None,) * len(shape), "replicated"
        if len(summed) == len(created) == 1:
            rows, columns = kernel.index(summed[0]), kernel.index(created[0])
            split = self._pair(layer, shape[rows], shape[columns], (rows, columns), len(shape))
            if self._split[layer] != (None,):
                self._split[layer] = _along(layer, created[0], output, self._axis)
            return split
        # More letters out than in: splits into heads. More in than out: sums over heads.
        heads, reason = (
            (created[0], "heads") if len(created) > len(summed) else (summed[0], "heads in")
        )
        dim = kernel.index(heads)
        if not self._fits(shape[dim]):
            self._split[layer] = (None,)
            return (None,) * len(shape), "replicated: heads do not divide"
        self._split[layer] = _along(layer, heads, output, self._axis)
        return _axes_at(dim, len(shape), self._axis), reason


def _axes_at(dim: int, rank: int, axis: str | None) -> Axes:
    return tuple(axis if d == dim else None for d in range(rank))


def einsum_terms(equation: str) -> tuple[str, str, str]:
    """Input, kernel and output of an einsum equation.

    >>> einsum_terms("abc,cde->abde")
    ('abc', 'cde', 'abde')
    """
    left, _, output = equation.replace(" ", "").replace("...", "").partition("->")
    inputs, _, kernel = left.partition(",")
    return inputs, kernel, output


def _along(layer: Any, letter: str, output: str, axis: str | None) -> Axes:
    """The axes of an EinsumDense bias when `letter` of its output is split."""
    bias = [c for c in output if c in (layer.bias_axes or "")]
    return tuple(axis if c == letter else None for c in bias)
