"""Shards a dataset of global batches into the rows of each replica, inside `tf.data`.

A batch is cut as early as its rows allow: arrays before their rows are gathered, a pipeline that
several workers read in front of what makes a row from a row (`own_rows.py`), which data workers
may compute (`data_service.py`), and any other where it ends.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from absl import logging

from tfaccel.distribute import _private, data_service, own_rows
from tfaccel.distribute.batch_sharding import (
    DEFAULT_SHARDING,
    Placement,
    ShardingOptions,
    is_absent,
    shard_batch,
    shard_own_rows,
)
from tfaccel.distribute.dataset_order import check_order
from tfaccel.errors import InputError

PER_WORKER = (
    "; or give tfaccel.strategy(..., input='per_worker'), where each worker reads rows of its own"
)


def shard_dataset(
    dataset: tf.data.Dataset,
    placement: Placement,
    read_ahead: bool = True,
    sharding: ShardingOptions = DEFAULT_SHARDING,
    first: Callable[[Any], tf.Tensor] | None = None,
) -> tf.data.Dataset:
    """Maps `shard_batch` over a dataset of global batches.

    Arrays given to `fit` are split before their rows are gathered, so that a worker copies only the
    rows its own replicas need.

    Args:
        dataset: of global batches.
        placement: which blocks of rows are ours.
        read_ahead: whether batches are made before they are requested.
        sharding: as in `shard_batch`.
        first: makes a fingerprint of the first batch, whole, which is a last element (int64, shape
            `[n]`); of the others it is empty, or as in `with_first`.

    Raises:
        InputError: when an element of `dataset` is not a batch, or has parts of different rows; or
            when several workers would get its rows in different orders.
    """
    check_batched(dataset.element_spec)

    @tf.autograph.experimental.do_not_convert
    def parts(*batch: Any) -> Any:
        return shard_batch(batch if len(batch) > 1 else batch[0], placement, sharding)

    arrays = _private.array_pipeline(dataset) if read_ahead else None
    source, whole = dataset, as_it_is
    if arrays is not None:
        source, functions = arrays
        whole = functools.partial(gathered, functions)

        @tf.autograph.experimental.do_not_convert
        def parts(*pair: Any) -> Any:
            return _gather_own(*pair, functions, placement, sharding)

    moved = _cut_moved_up(dataset, placement) if arrays is None and read_ahead else None
    if moved is not None:
        source = moved.batches
    if placement.workers > 1 and arrays is None:
        check_order(source, PER_WORKER)
    if first is not None:
        of_each = moved is not None and moved.begins_elsewhere
        source, parts = source.enumerate(), with_first(parts, whole, first, of_each)
    if not read_ahead:
        return source.map(parts).with_options(dataset.options())
    divided = source.map(parts, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    if moved is not None:
        place = f"{placement.rank}-of-{placement.workers}x{placement.local}"
        marks = (sharding.multiples, first is not None, moved.begins_elsewhere)
        key = f"{place}-{sharding.undersized}{''.join(f'{mark:d}' for mark in marks)}"
        divided = moved.finish(divided, key, _computed_by_parts)
    return divided.with_options(dataset.options()).prefetch(tf.data.AUTOTUNE)


def shard_rows_of(
    dataset: tf.data.Dataset, placement: Placement, sharding: ShardingOptions = DEFAULT_SHARDING
) -> tf.data.Dataset:
    """As `shard_dataset`, of a dataset that has our rows of each batch alone.

    What reads them ahead is in the dataset already.

    Args:
        dataset: as `tfaccel.distribute.batch_rows.PyDatasetRows.dataset`, whose last part takes the
            place of a fingerprint.
        placement: which blocks of rows are ours.
        sharding: as in `shard_own_rows`.
    """

    @tf.autograph.experimental.do_not_convert
    def parts(own: Any, numbers: tf.Tensor, rows: tf.Tensor, order: tf.Tensor) -> Any:
        return (*shard_own_rows(own, numbers, rows, placement, sharding), order)

    return dataset.map(parts).with_options(dataset.options())


def _cut_moved_up(dataset: tf.data.Dataset, placement: Placement) -> own_rows.MovedCut | None:
    """The cut in front of what makes rows, where several workers read the same; None for none."""
    if placement.workers == 1 and not data_service.in_use():
        return None
    moved, over_all_rows = own_rows.move_cut(dataset)
    for line in over_all_rows:
        logging.info("tfaccel: input: every worker computes all rows in the %s.", line)
    if moved is None and data_service.in_use():
        logging.info("tfaccel: input: there is nothing that data workers can compute by rows.")
    return moved


def with_data_workers(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """A dataset of global batches, whole, whose rows data workers compute where they can.

    Args:
        dataset: of global batches, the same.
    """
    if _private.array_pipeline(dataset) is not None:
        return dataset
    moved = _cut_moved_up(dataset, Placement(1, 0, 1))
    if moved is None:
        return dataset
    cut = moved.batches.map(lambda *batch: (batch if len(batch) > 1 else batch[0],))
    made = moved.finish(cut, "whole", computed).map(lambda batch: batch)
    return made.with_options(dataset.options()).prefetch(tf.data.AUTOTUNE)


def _computed_by_parts(cut: tf.data.Dataset, compute: Callable[[Any], Any]) -> tf.data.Dataset:
    """As `computed`, where the first component has rows of several replicas."""
    return computed(cut, lambda own: tuple(compute(part) for part in own))


def computed(cut: tf.data.Dataset, compute: Callable[[Any], Any]) -> tf.data.Dataset:
    """Applies a function of rows to the first component of each element.

    On data workers, if there are any and they can.

    Args:
        cut: of tuples whose first component are rows.
        compute: the function.
    """
    if data_service.in_use():
        found = data_service.computed_elsewhere(cut, compute)
        if found is not None:
            return found
        logging.warning(
            "tfaccel: input: a map reads variables or tables, which data workers do not have; rows "
            "are computed here."
        )

    @tf.autograph.experimental.do_not_convert
    def first(own: Any, *rest: Any) -> Any:
        return (compute(own), *rest)

    return cut.map(first, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def with_first(
    parts: Any, whole: Any, first: Callable[[Any], tf.Tensor], of_each: bool = False
) -> Any:
    """`parts` of numbered elements, and a fingerprint of the first.

    Args:
        parts: a function of an element.
        whole: gives the batch of an element.
        first: makes the fingerprint of a batch.
        of_each: whether each has one, of its first row alone: any may come first in a pass.
    """

    @tf.autograph.experimental.do_not_convert
    def numbered(number: tf.Tensor, element: Any) -> Any:
        given = element if isinstance(element, tuple) else (element,)
        none = tf.zeros([0], tf.int64)
        if of_each:
            fingerprint = first(tf.nest.map_structure(_first_row, whole(*given)))
        else:
            fingerprint = tf.cond(tf.equal(number, 0), lambda: first(whole(*given)), lambda: none)
        return (*parts(*given), tf.ensure_shape(fingerprint, [None]))

    return numbered


def _first_row(leaf: Any) -> Any:
    return leaf[:1] if isinstance(leaf, tf.Tensor) else leaf


def as_it_is(*batch: Any) -> Any:
    """The components of an element."""
    return batch


def gathered(functions: list[Any], indices: tf.Tensor, data: Any) -> Any:
    """Rows of Keras's array pipeline."""
    batch = functions[0](indices, data)
    for function in functions[1:]:
        batch = function(*batch) if isinstance(batch, tuple) else function(batch)
    return batch


@tf.autograph.experimental.do_not_convert
def _gather_own(
    indices: tf.Tensor,
    data: Any,
    functions: list[Any],
    placement: Placement,
    sharding: ShardingOptions,
) -> Any:
    """One batch of Keras's array pipeline, for our replicas' rows alone."""
    own, fractions, rows = shard_batch(indices, placement, sharding)
    return tuple(gathered(functions, part, data) for part in own), fractions, rows


def check_batched(spec: Any) -> None:
    """Raises when an element of a dataset is not a batch.

    Raises:
        InputError: with the types and shapes that the dataset yields.
    """
    if any(s.shape.rank == 0 for s in tf.nest.flatten(spec) if hasattr(s, "shape")):
        given = [s for s in tf.nest.flatten(spec) if not is_absent(s)]
        shapes = ", ".join(f"{s.dtype.name}{s.shape}" for s in given)
        raise InputError(
            f"tfaccel: the dataset yields ({shapes}), expected batches whose first dimension is "
            "the rows; batch it with dataset.batch(global_batch_size)."
        )
