"""Own rows on a mesh: each process computes the rows of a batch that its devices hold.

The batch axis of a mesh divides the rows of a batch, and each process needs those of its own
devices. A batch whose rows do not divide is replicated on every device, and every process computes
all of it. The same holds where a step is computed whole on each host (`host_fallback.py`), if that
is known when the data are requested: a step that falls back later gathers the rows of its batches.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from absl import logging

from tfaccel.distribute import _private, batch_rows, dataset_consistency, own_rows
from tfaccel.distribute.batch_rows import PyDatasetRows
from tfaccel.distribute.batch_sharding import is_absent, row_count
from tfaccel.distribute.dataset_order import check_order
from tfaccel.distribute.dataset_sharding import as_it_is, computed, gathered, with_first


@dataclass(frozen=True)
class MeshRows:
    """Which rows of each batch the devices of this process hold.

    Attributes:
        parts: the number of parts into which the batch axis divides the rows.
        held: the numbers of the parts in this process, in ascending order.
    """

    parts: int
    held: tuple[int, ...]

    @classmethod
    def of(cls, mesh: Any, axis: str | None) -> MeshRows | None:
        """The rows of this process; None where its devices hold all rows.

        Args:
            mesh: a DTensor mesh.
            axis: the axis that divides rows, or None.
        """
        if axis is None:
            return None
        held = {int(place[axis]) for place in mesh.local_device_locations()}
        parts = int(mesh.dim_size(axis))
        return cls(parts, tuple(sorted(held))) if len(held) < parts else None

    def numbers(self, rows: int) -> npt.NDArray[np.int64]:
        """The indices of our rows in a batch of that many (int64), in ascending order.

        >>> MeshRows(4, (1, 2)).numbers(8).tolist(), MeshRows(4, (1, 2)).numbers(3).tolist()
        ([2, 3, 4, 5], [0, 1, 2])
        """
        if rows % self.parts:
            return np.arange(rows)
        each = np.arange(rows // self.parts)
        return np.concatenate([part * len(each) + each for part in self.held]).astype(np.int64)

    def numbers_in_graph(self, rows: tf.Tensor) -> tf.Tensor:
        """As `numbers`, for a number of rows that a graph computes (int64 scalar)."""
        each = tf.range(rows // self.parts)
        ours = tf.concat([part * (rows // self.parts) + each for part in self.held], 0)
        return tf.cond(rows % self.parts == 0, lambda: ours, lambda: tf.range(rows))


def why_whole(spec: Any) -> str:
    """Why a process must compute all rows of batches of `spec`; empty where it need not.

    DTensor hangs where processes hold slices of different shapes. Rows of a known shape cannot
    differ between processes.
    """
    leaves = [leaf for leaf in tf.nest.flatten(spec) if not is_absent(leaf)]
    if all(isinstance(s, tf.TensorSpec) and s.shape[1:].is_fully_defined() for s in leaves):
        return ""
    return "its rows have no fixed shape"


def of_own_rows(dataset: tf.data.Dataset, rows: MeshRows) -> tf.data.Dataset | None:
    """A dataset of our rows of each batch, with their numbers and the number of all rows.

    Args:
        dataset: of global batches, with rows of fixed shapes.
        rows: ours.

    Returns:
        A dataset of tuples of our rows, their indices (int64, shape `[n]`), the number of rows of
        the batch (int64 scalar), and the fingerprints of the first batch (int64, shape `[k]`),
        which are empty for the others, or as in `with_first`; None where it would gain nothing.
    """
    arrays = _private.array_pipeline(dataset)
    if arrays is not None:
        source, functions = arrays

        @tf.autograph.experimental.do_not_convert
        def gather(indices: tf.Tensor, data: Any) -> Any:
            count = row_count(indices)
            numbers = rows.numbers_in_graph(count)
            return gathered(functions, tf.gather(indices, numbers), data), numbers, count

        whole = functools.partial(gathered, functions)
        done = _mapped(source, gather, whole)
        return done.with_options(dataset.options()).prefetch(tf.data.AUTOTUNE)
    moved, over_all_rows = own_rows.move_cut(dataset)
    for line in over_all_rows:
        logging.info("tfaccel: input: every process computes all rows in the %s.", line)
    if moved is None or not _is_dense(moved.batches.element_spec):
        return None
    check_order(moved.batches)

    @tf.autograph.experimental.do_not_convert
    def take(*batch: Any) -> Any:
        given = batch if len(batch) > 1 else batch[0]
        count = row_count(tf.nest.flatten(given)[0])
        numbers = rows.numbers_in_graph(count)
        own = tf.nest.map_structure(lambda leaf: tf.gather(leaf, numbers), given)
        return own, numbers, count

    cut = _mapped(moved.batches, take, as_it_is, moved.begins_elsewhere)
    compared = "each" if moved.begins_elsewhere else "first"
    key = f"mesh-{compared}-{'-'.join(map(str, rows.held))}-of-{rows.parts}"
    done = moved.finish(cut, key, computed)
    return done.with_options(dataset.options()).prefetch(tf.data.AUTOTUNE)


def _mapped(
    dataset: tf.data.Dataset, function: Any, whole: Any, of_each: bool = False
) -> tf.data.Dataset:
    parts = with_first(function, whole, dataset_consistency.fingerprints, of_each)
    return dataset.enumerate().map(parts, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _is_dense(spec: Any) -> bool:
    return all(isinstance(leaf, tf.TensorSpec) for leaf in tf.nest.flatten(spec))


def own_batches(
    caller: _private.Caller, dataset: tf.data.Dataset, rows: MeshRows, why: str
) -> tf.data.Dataset | PyDatasetRows | None:
    """The batches that a model reads, with only our rows; None where they are read whole.

    Args:
        caller: that requests its data.
        dataset: that Keras has made of them.
        rows: ours.
        why: every process must compute all rows; empty where it need not.
    """
    if why:
        logging.info("tfaccel: input: every process computes all rows, since %s.", why)
        return None
    if isinstance(caller.epoch.data_adapter, _private.PyDatasetAdapter):
        adapter = batch_rows.adapter_of(caller, "process")
        return PyDatasetRows(adapter, rows.numbers) if adapter is not None else None
    return of_own_rows(dataset, rows)
