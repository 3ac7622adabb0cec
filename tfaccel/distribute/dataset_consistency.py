"""Dataset consistency: whether all workers iterate over the same global batches.

A script that shards its data itself (`dataset.shard`, a file per worker) gives every worker
different batches. Most rows of each would then not be trained on; and where one worker has fewer
batches, the others would wait for it, or receive an unrelated message.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
from absl import logging

from tfaccel.errors import InputError

AllGather = Callable[[list[int]], list[list[int]]]

_EXPECTED = (
    "expected the same dataset of global batches on every worker, of which each takes its own "
    "rows; leave out dataset.shard, files by worker and the like"
)
_warned = False


def length_of(dataset: tf.data.Dataset, steps: int | None) -> int:
    """The number of batches in a pass over `dataset`, or one of `tf.data`'s two negative numbers.

    Args:
        dataset: of global batches.
        steps: how many of them Keras will take, where it knows.
    """
    return int(dataset.cardinality()) if steps is None else steps


def check_equal(dataset: tf.data.Dataset, length: int, all_gather: AllGather) -> None:
    """Compares static facts of the workers' datasets before reading; all must call.

    Args:
        dataset: of global batches.
        length: as `length_of`.
        all_gather: returns the numbers of every worker, in rank order.

    Raises:
        InputError: on every worker, when they differ.
    """
    gathered = all_gather([length, _kind(dataset)])
    _refuse_other_elements(dataset, {kind for _, kind in gathered}, _EXPECTED)
    if len({number for number, _ in gathered}) == 1:
        return
    lengths = ", ".join(_length_text(numbers[0]) for numbers in gathered)
    raise InputError(
        f"tfaccel: the workers' datasets have {lengths} batches (by rank); {_EXPECTED}; or give "
        "each the same number of steps with dataset.take."
    )


def check_elements(dataset: tf.data.Dataset, all_gather: AllGather) -> None:
    """Compares the row specs of the workers' datasets; all must call.

    Args:
        dataset: of batches.
        all_gather: as in `check_equal`.

    Raises:
        InputError: on every worker, when they differ.
    """
    kinds = {kind for (kind,) in all_gather([_kind(dataset)])}
    _refuse_other_elements(dataset, kinds, "expected rows of the same kind on every worker")


def _kind(dataset: tf.data.Dataset) -> int:
    return zlib.crc32(repr(tf.nest.map_structure(_row_spec, dataset.element_spec)).encode())


def _refuse_other_elements(dataset: tf.data.Dataset, kinds: set[int], expected: str) -> None:
    if len(kinds) > 1:
        raise InputError(
            f"tfaccel: the workers' datasets have elements of different shapes or types "
            f"({tf.nest.flatten(dataset.element_spec)} on this one); {expected}."
        )


def end_together(batches: Iterator[Any], length: int, all_gather: AllGather) -> Iterator[Any]:
    """`batches` that end on all workers at once, with as many rows on each.

    If their number is known, workers only communicate at the last one.

    Args:
        batches: of this worker, from `shard_dataset`.
        length: as `length_of`.
        all_gather: as in `check_equal`.

    Raises:
        InputError: on every worker, when numbers of batches or rows differ.
    """
    unknown = length == tf.data.UNKNOWN_CARDINALITY
    number = 0
    while True:
        batch = next(batches, None)
        if unknown or number == length - 1:
            gathered = all_gather(
                [int(batch is not None), int(batch[2]) if batch is not None else 0]
            )
            _check_batch(number, gathered)
        if batch is None:
            return
        yield batch
        number += 1


def _check_batch(number: int, gathered: list[list[int]]) -> None:
    if len({tuple(numbers) for numbers in gathered}) == 1:
        return
    ended = [str(rank) for rank, (more, _) in enumerate(gathered) if not more]
    if ended:
        raise InputError(
            f"tfaccel: worker{'s' * (len(ended) > 1)} {', '.join(ended)} ran out of data after "
            f"{number} batches while other workers have more; {_EXPECTED}."
        )
    rows = ", ".join(str(rows) for _, rows in gathered)
    raise InputError(
        f"tfaccel: batch {number} of the workers' datasets has {rows} rows (by rank); {_EXPECTED}."
    )


def check_first_batch(
    parts: Any,
    all_gather: AllGather,
    is_deterministic: Callable[[], bool],
    alternative: str = "",
) -> None:
    """Compares the first global batch of all workers; all must call.

    Args:
        parts: fingerprints of the batch: integers, one for each of its leaves.
        all_gather: as in `check_equal`.
        is_deterministic: whether nothing but the data makes the dataset's rows. If something draws
            at random, noise that each worker adds to its own rows is harmless.
        alternative: to write instead, for the error.

    Raises:
        InputError: on every worker, when data differ in a deterministic dataset.
    """
    global _warned
    gathered = all_gather([int(part) for part in parts])
    same = [len(set(leaf)) == 1 for leaf in zip(*gathered, strict=True)]
    if all(same):
        return
    if all(flag for (flag,) in all_gather([int(is_deterministic())])):
        raise InputError(
            "tfaccel: the first batch differs between workers, and nothing in its dataset is "
            f"random; {_EXPECTED}, and seed what creates arrays{alternative}."
        )
    if _warned or any(same):
        return
    _warned = True
    logging.warning(
        "tfaccel: the first batch differs between workers. If that comes from random "
        "augmentation, nothing is wrong. If each worker reads its own rows, most rows are never "
        "trained on; %s.",
        _EXPECTED,
    )


def fingerprints(batch: Any) -> tf.Tensor:
    """A fingerprint of each leaf of a batch (int64, shape `[leaves]`)."""
    hashes = [
        tf.strings.to_hash_bucket_fast(tf.io.serialize_tensor(leaf), 2**31 - 1)
        for leaf in tf.nest.flatten(batch, expand_composites=True)
        if isinstance(leaf, tf.Tensor) and leaf.dtype not in (tf.variant, tf.resource)
    ]
    return tf.stack(hashes) if hashes else tf.zeros([0], tf.int64)


def _row_spec(spec: Any) -> Any:
    if isinstance(spec, tf.TensorSpec) and spec.shape.rank:
        return spec.dtype.name, tuple(spec.shape[1:])
    return type(spec).__name__


def _length_text(number: int) -> str:
    if number == tf.data.INFINITE_CARDINALITY:
        return "infinitely many"
    return "unknown" if number == tf.data.UNKNOWN_CARDINALITY else str(number)
