"""Global batches laid out on the mesh."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.experimental import dtensor

from tfaccel.distribute import _private
from tfaccel.distribute.batch_iterator import (
    BatchIterable,
    BatchIterator,
    PushBackIterator,
    without_autotune,
)
from tfaccel.distribute.batch_sharding import check_batched, is_absent
from tfaccel.distribute.batches import ABSENT, absent_to_none
from tfaccel.distribute.model_parallel import host_transfer, user_functions
from tfaccel.distribute.read_ahead import read_ahead
from tfaccel.errors import InputError


class MeshBatches(BatchIterable):
    """The global batches of a dataset, each with its rows over the batch axis.

    A batch whose rows do not divide is given whole to every device: the numbers stay those of the
    global batch, and that batch gains no speed.

    Args:
        dataset: of global batches, the same in every process.
        mesh: a DTensor mesh.
        axis: the axis that divides rows, or None.
        threads: Keras's threads that read them ahead, or None.
        strategy: whose mesh it is.
        divides: whether the next batch goes to the mesh, and does not stay on the host.
    """

    def __init__(
        self,
        dataset: tf.data.Dataset,
        mesh: Any,
        axis: str | None,
        threads: Any = None,
        strategy: Any = None,
        divides: Callable[[], bool] = lambda: True,
    ) -> None:
        super().__init__(threads)
        self._strategy = weakref.ref(strategy) if strategy is not None else None
        self.element_spec = dataset.element_spec
        check_batched(dataset.element_spec)
        if divides():
            _check(dataset.element_spec)
        self._divides = divides
        self._kind = _kind(dataset.element_spec)
        self._dataset = without_autotune(dataset)
        self._mesh = mesh
        self._axis = axis

    def _open(self) -> Iterator[Any]:
        with tf.device("/CPU:0"):
            source = iter(self._dataset)
        placed = (
            to_mesh(batch, self._mesh, self._axis, self._kind) if self._divides() else batch
            for batch in source
        )
        return read_ahead(placed, in_thread=True) if self._threads is None else placed

    def _reading(self, source: PushBackIterator) -> BatchIterator:
        return _MeshIterator(source, self._strategy() if self._strategy is not None else None)


class _MeshIterator(BatchIterator):
    """One pass over batches, which a graph cannot read."""

    def __init__(self, source: PushBackIterator, strategy: Any) -> None:
        super().__init__(source)
        self._strategy = strategy

    def __next__(self) -> Any:
        user_functions.before_use(self._strategy, takes_input=True)
        return super().__next__()


def to_dtensors(batch: Any) -> Any:
    """The DTensors of a nest that `to_mesh` made, and None where it was given nothing."""
    return tf.nest.map_structure(
        lambda leaf: leaf.values[0] if isinstance(leaf, _private.PerReplica) else leaf,
        absent_to_none(batch),
        expand_composites=False,
    )


def to_mesh(batch: Any, mesh: Any, axis: str | None, kind: type = _private.DynamicRows) -> Any:
    """Puts a nest of host tensors on the mesh, rows divided over `axis`.

    Args:
        batch: the nest.
        mesh: a DTensor mesh.
        axis: the axis that divides rows, or None.
        kind: what holds each leaf: `DynamicRows`, or `StaticRows` where all batches have as many.
    """
    return tf.nest.map_structure(
        lambda leaf: _leaf_to_mesh(leaf, mesh, axis, kind), batch, expand_composites=False
    )


def _kind(spec: Any) -> type:
    """What holds the leaves of batches of `spec`; a step may ask a static one for `x.shape[0]`."""
    leaves = [s for s in tf.nest.flatten(spec) if not is_absent(s)]
    rows = [s.shape[0] if isinstance(s, tf.TensorSpec) and s.shape.rank else None for s in leaves]
    return _private.StaticRows if rows and None not in rows else _private.DynamicRows


def place_tensors(values: Any, mesh: Any, axis: str | None) -> Any:
    """As `to_mesh`, of the arrays and tensors of a nest alone: it is what a function is given."""

    def of(leaf: Any) -> Any:
        composite = (tf.RaggedTensor, tf.SparseTensor)
        tensor = isinstance(leaf, (tf.Tensor, np.ndarray, np.generic, *composite))
        return _leaf_to_mesh(leaf, mesh, axis) if tensor else leaf

    return tf.nest.map_structure(of, values, expand_composites=False)


def _leaf_to_mesh(leaf: Any, mesh: Any, axis: str | None, kind: type = _private.DynamicRows) -> Any:
    if is_absent(leaf):
        return ABSENT
    if isinstance(leaf, _private.PerReplica):
        return leaf
    if tf.is_tensor(leaf) and dtensor.is_dtensor(leaf):
        return leaf
    _refuse_uneven(leaf)
    with tf.device("/CPU:0"):
        leaf = tf.convert_to_tensor(leaf)
    rank = leaf.shape.rank
    divides = (
        rank and axis is not None and leaf.shape[0] and leaf.shape[0] % mesh.dim_size(axis) == 0
    )
    first = (axis,) if divides else (None,)
    placed = host_transfer.scatter(leaf, (*first, *[None] * (rank - 1)) if rank else (), mesh)
    return kind((placed,))


def _check(spec: Any) -> None:
    for leaf in tf.nest.flatten(spec):
        _refuse_uneven(leaf)


def _refuse_uneven(leaf: Any) -> None:
    kind = getattr(leaf, "value_type", type(leaf))
    if isinstance(kind, type) and issubclass(kind, (tf.RaggedTensor, tf.SparseTensor)):
        raise InputError(
            f"tfaccel: the batch holds a {kind.__name__}, which strategy 'model_parallel' cannot "
            "divide, expected dense tensors; call to_tensor() or tf.sparse.to_dense in the dataset."
        )
    if getattr(leaf, "dtype", None) == tf.string:
        raise InputError(
            "tfaccel: the batch holds strings, which no device of a mesh takes, expected numbers; "
            "look them up in the dataset (dataset.map), not in the model."
        )
