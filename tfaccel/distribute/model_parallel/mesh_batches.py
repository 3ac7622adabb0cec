"""Global batches laid out on the mesh."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.experimental import dtensor

from tfaccel.distribute import _private, data_service, dataset_consistency, row_functions
from tfaccel.distribute.batch_iterator import (
    BatchIterable,
    BatchIterator,
    PushBackIterator,
    in_order,
    without_autotune,
)
from tfaccel.distribute.batch_rows import PyDatasetRows
from tfaccel.distribute.batch_sharding import is_absent
from tfaccel.distribute.dataset_order import check_order
from tfaccel.distribute.dataset_sharding import check_batched, with_data_workers
from tfaccel.distribute.model_parallel import host_transfer, user_functions
from tfaccel.distribute.read_ahead import read_ahead
from tfaccel.errors import InputError


class MeshBatches(BatchIterable):
    """The global batches of a dataset, each with its rows over the batch axis.

    A batch whose rows do not divide is replicated on every device: the numbers stay those of the
    global batch, but that batch gains no speed.

    Args:
        dataset: of global batches, the same in every process.
        mesh: a DTensor mesh.
        axis: the axis that divides rows, or None.
        threads: Keras's prefetching threads, or None.
        strategy: whose mesh it is.
        divides: whether the next batch goes to the mesh rather than staying on the host.
        by_leaf: whether each leaf of a batch is a distributed value of its own, for a loop that
            unpacks batches.
        inspected: as in `tfaccel.distribute._private.Caller`.
        own: a dataset of only our own rows, from `mesh_rows.of_own_rows`, which is read in place of
            `dataset`; or one of a `PyDataset`. Its batches go to the mesh regardless of `divides`:
            a step on the host gathers them.
    """

    def __init__(
        self,
        dataset: tf.data.Dataset,
        mesh: Any,
        axis: str | None,
        threads: Any = None,
        strategy: Any = None,
        divides: Callable[[], bool] = lambda: True,
        by_leaf: bool = False,
        inspected: bool = False,
        own: tf.data.Dataset | PyDatasetRows | None = None,
    ) -> None:
        super().__init__(threads, inspected)
        self._strategy = weakref.ref(strategy) if strategy is not None else None
        self.element_spec = dataset.element_spec
        check_batched(dataset.element_spec)
        if divides():
            _check(dataset.element_spec)
        self._divides = divides
        self._by_leaf = by_leaf
        self._static_rows = _has_static_rows(dataset.element_spec)
        user_dataset = dataset
        several = strategy is not None and strategy.cluster is not None
        if several and strategy.cluster.size > 1 and own is None:
            check_order(dataset)
        self._py_dataset = own if isinstance(own, PyDatasetRows) else None
        self._own_rows = own is not None
        if own is not None:
            dataset = own.dataset if isinstance(own, PyDatasetRows) else own
        elif data_service.in_use() and threads is None:
            dataset = with_data_workers(dataset)
        self._dataset = without_autotune(in_order(dataset) if several else dataset)
        self._is_deterministic = functools.partial(row_functions.is_deterministic, user_dataset)
        self._compared = False
        self._mesh = mesh
        self._axis = axis

    def _open(self) -> Iterator[Any]:
        with tf.device("/CPU:0"):
            source = iter(self._dataset)
        if self._own_rows:
            elements = source if self._py_dataset is None else self._py_dataset.elements(source)
            compared = self._compare_first(elements, lambda element: element[3])
            placed = (self._own_to_mesh(*element[:3]) for element in compared)
        else:
            compared = self._compare_first(source, dataset_consistency.fingerprints)
            placed = (self._to_mesh(batch) if self._divides() else batch for batch in compared)
        return read_ahead(placed, in_thread=True) if self._threads is None else placed

    def _compare_first(
        self, elements: Iterator[Any], fingerprints_of: Callable[[Any], Any]
    ) -> Iterator[Any]:
        """`elements` of a pass, the first (which no thread prefetches) compared with others'."""
        for number, element in enumerate(elements):
            strategy = self._strategy() if number == 0 and self._strategy is not None else None
            if strategy is not None and strategy.cluster is not None:
                self._compare(fingerprints_of(element), strategy.gather_numbers)
            yield element

    def _compare(self, first: Any, all_gather: dataset_consistency.AllGather) -> None:
        """Compares a batch with those of other processes; every process must call."""
        if not len(first):
            return
        if self._py_dataset is not None:
            self._py_dataset.check_order(first, all_gather)
        elif not self._compared:
            dataset_consistency.check_first_batch(first, all_gather, self._is_deterministic)
        self._compared = True

    def _to_mesh(self, batch: Any) -> Any:
        if not self._by_leaf:
            placed = to_mesh(batch, self._mesh, self._axis, self._static_rows)
            placed.global_rows = next(
                (int(t.shape[0]) for t in tf.nest.flatten(batch) if t is not None and t.shape.rank),
                None,
            )
            return placed
        return tf.nest.map_structure(
            lambda t: None if t is None else _private.PerReplicaBatch([t], self._static_rows),
            place(batch, self._mesh, self._axis),
        )

    def _own_to_mesh(self, own: Any, numbers: Any, rows: Any) -> Any:
        numbers, rows = numbers.numpy(), int(rows)
        leaves = tf.nest.map_structure(
            lambda leaf: place_own(leaf, numbers, rows, self._mesh, str(self._axis)), own
        )
        placed = _private.PerReplicaBatch([leaves], self._static_rows)
        placed.global_rows = rows
        return placed

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
    """A nest with the DTensors from a result of `to_mesh`."""
    return tf.nest.map_structure(
        lambda leaf: leaf.values[0] if isinstance(leaf, _private.PerReplica) else leaf,
        batch,
        expand_composites=False,
    )


def to_mesh(
    batch: Any, mesh: Any, axis: str | None, static_rows: bool = False
) -> _private.PerReplicaBatch:
    """Puts a batch of host tensors on the mesh, rows divided over `axis`, unless it is there.

    Args:
        batch: a nest, or a batch that is on the mesh.
        mesh: a DTensor mesh.
        axis: the axis that divides rows, or None.
        static_rows: whether all batches have the same number of rows.
    """
    if isinstance(batch, _private.PerReplicaBatch):
        return batch
    return _private.PerReplicaBatch([place(batch, mesh, axis)], static_rows)


def place(batch: Any, mesh: Any, axis: str | None) -> Any:
    """The DTensors of a nest of host tensors, rows divided over `axis`."""
    return tf.nest.map_structure(
        lambda leaf: _place_leaf(leaf, mesh, axis), batch, expand_composites=False
    )


def place_own(leaf: Any, numbers: np.ndarray, rows: int, mesh: Any, axis: str) -> Any:
    """The DTensor of a host tensor that has only our rows.

    Args:
        leaf: our rows, or an absent value.
        numbers: of those rows in the batch, as `mesh_rows.MeshRows.numbers`.
        rows: how many the batch has.
        mesh: a DTensor mesh.
        axis: the axis that divides rows.
    """
    if len(numbers) == rows or is_absent(leaf):  # which no axis divides
        return _place_leaf(leaf, mesh, axis)
    array = np.asarray(leaf)

    def read(slices: host_transfer.Slices) -> Any:
        first = int(np.searchsorted(numbers, slices[0].start))
        return array[first : first + slices[0].stop - slices[0].start].copy()

    axes = (axis, *[None] * (array.ndim - 1))
    return host_transfer.scatter_from(read, (rows, *array.shape[1:]), axes, mesh)


def _has_static_rows(spec: Any) -> bool:
    """Whether all batches of `spec` have equally many rows; a step may then use `x.shape[0]`."""
    leaves = [s for s in tf.nest.flatten(spec) if not is_absent(s)]
    rows = [s.shape[0] if isinstance(s, tf.TensorSpec) and s.shape.rank else None for s in leaves]
    return bool(rows) and None not in rows


def place_tensors(values: Any, mesh: Any, axis: str | None) -> Any:
    """As `to_mesh`, for each array and tensor of a nest of function arguments.

    The function sees an unknown number of rows, as in batches.
    """

    def of(leaf: Any) -> Any:
        composite = (tf.RaggedTensor, tf.SparseTensor)
        is_value = isinstance(leaf, (tf.Tensor, np.ndarray, np.generic, *composite))
        if not is_value or (tf.is_tensor(leaf) and dtensor.is_dtensor(leaf)):
            return leaf
        return _private.PerReplicaBatch([_place_leaf(leaf, mesh, axis)])

    return tf.nest.map_structure(of, values, expand_composites=False)


def _place_leaf(leaf: Any, mesh: Any, axis: str | None) -> Any:
    if is_absent(leaf):
        return None
    if isinstance(leaf, _private.PerReplica):
        return leaf.values[0]
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
    return host_transfer.scatter(leaf, (*first, *[None] * (rank - 1)) if rank else (), mesh)


def _check(spec: Any) -> None:
    for leaf in tf.nest.flatten(spec):
        _refuse_uneven(leaf)


def _refuse_uneven(leaf: Any) -> None:
    kind = getattr(leaf, "value_type", type(leaf))
    if isinstance(kind, type) and issubclass(kind, (tf.RaggedTensor, tf.SparseTensor)):
        raise InputError(
            f"tfaccel: the batch holds a {kind.__name__}, which strategy 'model_parallel' cannot "
            "divide; expected dense tensors; call to_tensor() or tf.sparse.to_dense in the dataset."
        )
    if getattr(leaf, "dtype", None) == tf.string:
        raise InputError(
            "tfaccel: the batch holds strings, which the devices of a mesh do not support; "
            "expected numbers; look them up in the dataset (dataset.map), not in the model."
        )
