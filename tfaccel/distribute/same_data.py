"""Whether all workers feed the same global batches, of which each takes its own rows.

A script that shards its data itself (`dataset.shard`, a file for each worker) gives every worker
other batches. Of each, most rows would then be trained by nobody; and where one worker has fewer
batches, the others would wait for it, or meet its next message in the middle of theirs.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
from absl import logging

from tfaccel.errors import InputError

Shared = Callable[[list[int]], list[list[int]]]

_WRITE = (
    "expected the same dataset of global batches on every worker, of which each takes its own "
    "rows; leave out dataset.shard, files by worker and the like"
)
_said = False


def length_of(dataset: tf.data.Dataset, steps: int | None) -> int:
    """How many batches a pass over `dataset` has, or one of `tf.data`'s two negative numbers.

    Args:
        dataset: of global batches.
        steps: how many of them Keras will take, where it knows.
    """
    return int(dataset.cardinality()) if steps is None else steps


def check_alike(dataset: tf.data.Dataset, length: int, share: Shared) -> None:
    """Compares what is known of the workers' datasets before anything is read; all must call.

    Args:
        dataset: of global batches.
        length: as `length_of`.
        share: gives the numbers of every worker, in the order of their ranks.

    Raises:
        InputError: on every worker, when they differ.
    """
    kind = zlib.crc32(repr(tf.nest.map_structure(_without_rows, dataset.element_spec)).encode())
    found = share([length, kind])
    if len({tuple(numbers) for numbers in found}) == 1:
        return
    if len({numbers[1] for numbers in found}) > 1:
        raise InputError(
            f"tfaccel: the workers' datasets have elements of different shapes or types "
            f"({tf.nest.flatten(dataset.element_spec)} on this one), {_WRITE}."
        )
    lengths = ", ".join(_length(numbers[0]) for numbers in found)
    raise InputError(
        f"tfaccel: the workers' datasets have {lengths} batches (by rank), {_WRITE}; or give each "
        "the same number of steps with dataset.take."
    )


def in_step(batches: Iterator[Any], length: int, share: Shared) -> Iterator[Any]:
    """`batches` that end on all workers at once, with as many rows on each.

    Where their number is known nothing is asked before the last one.

    Args:
        batches: of this worker, as `split_dataset` makes them.
        length: as `length_of`.
        share: as in `check_alike`.

    Raises:
        InputError: on every worker, when one has more batches than another, or other rows.
    """
    unknown = length == tf.data.UNKNOWN_CARDINALITY
    number = 0
    while True:
        batch = next(batches, None)
        if unknown or number == length - 1:
            found = share([int(batch is not None), int(batch[2]) if batch is not None else 0])
            _check_step(number, found)
        if batch is None:
            return
        yield batch
        number += 1


def _check_step(number: int, found: list[list[int]]) -> None:
    if len({tuple(numbers) for numbers in found}) == 1:
        return
    ended = [str(rank) for rank, (more, _) in enumerate(found) if not more]
    if ended:
        raise InputError(
            f"tfaccel: worker {', '.join(ended)} has no more than {number} batches and others "
            f"have, {_WRITE}."
        )
    rows = ", ".join(str(rows) for _, rows in found)
    raise InputError(
        f"tfaccel: batch {number} of the workers' datasets has {rows} rows (by rank), {_WRITE}."
    )


def check_first(parts: Any, share: Shared) -> None:
    """Says so when the first global batch of a worker has other values than another's.

    Args:
        parts: what stands for the values of the batch: integers, one for each of its leaves.
        share: as in `check_alike`.
    """
    global _said
    found = share([int(part) for part in parts])
    if _said or not found or any(len(set(leaf)) == 1 for leaf in zip(*found, strict=True)):
        return  # something is alike: noise that each worker adds to its own rows is no harm
    _said = True
    logging.warning(
        "tfaccel: the first batch has other values on each worker. If they come from random "
        "augmentation, nothing is wrong. If each worker reads rows of its own, most rows train "
        "nothing: %s.",
        _WRITE,
    )


def fingerprints(batch: Any) -> tf.Tensor:
    """An integer for the values of each leaf of a batch (int64, shape `[leaves]`)."""
    found = [
        tf.strings.to_hash_bucket_fast(tf.io.serialize_tensor(leaf), 2**31 - 1)
        for leaf in tf.nest.flatten(batch, expand_composites=True)
        if isinstance(leaf, tf.Tensor) and leaf.dtype not in (tf.variant, tf.resource)
    ]
    return tf.stack(found) if found else tf.zeros([0], tf.int64)


def _without_rows(spec: Any) -> Any:
    if isinstance(spec, tf.TensorSpec) and spec.shape.rank:
        return spec.dtype.name, tuple(spec.shape[1:])
    return type(spec).__name__


def _length(number: int) -> str:
    if number == tf.data.INFINITE_CARDINALITY:
        return "infinitely many"
    return "unknown" if number == tf.data.UNKNOWN_CARDINALITY else str(number)
