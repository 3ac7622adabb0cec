"""Shards a global batch into the rows of each replica.

Replica `m` of `N` gets a contiguous block of the batch's rows; when the rows do not divide, the
first replicas get one more. Workers take the blocks in turn (worker `w` of `W` holds `w, w + W,
…`), which is the order in which Keras's `predict` reassembles them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfaccel.errors import InputError


@dataclass(frozen=True)
class Placement:
    """Which of all replicas run in this process.

    Attributes:
        workers: number of processes.
        rank: our rank among them.
        local: number of replicas in each process.
    """

    workers: int
    rank: int
    local: int

    @property
    def replicas(self) -> int:
        """The number of replicas in all processes."""
        return self.workers * self.local

    @property
    def blocks(self) -> list[int]:
        """The block of rows each of our replicas takes.

        >>> Placement(workers=2, rank=1, local=2).blocks
        [1, 3]
        """
        return [replica * self.workers + self.rank for replica in range(self.local)]


@dataclass(frozen=True)
class ShardingOptions:
    """How batches are sharded in special cases.

    Attributes:
        undersized: for a batch with fewer rows than replicas, what the replicas without a row get:
            ``"none"``, no rows; ``"whole"``, all rows, as the first replica, which computes what
            one device would; ``"last"``, the last row. Their batch fraction is 0.
        multiples: whether a part of a batch may have k times as many rows as another, and is then
            split by k rows for one; else only a part of one row may differ, and goes to all.
    """

    undersized: str = "none"
    multiples: bool = False


DEFAULT_SHARDING = ShardingOptions()


@tf.autograph.experimental.do_not_convert
def shard_batch(
    batch: Any, placement: Placement, sharding: ShardingOptions = DEFAULT_SHARDING
) -> tuple[tuple[Any, ...], tf.Tensor, tf.Tensor]:
    """Shards one global batch.

    Args:
        batch: a nest of dense, ragged or sparse tensors, or absent values (`is_absent`).
        placement: which blocks are ours.
        sharding: how to handle few rows, and parts with different numbers of rows.

    Returns:
        The part of `batch` for each of our replicas (None for absent values), each one's fraction
        of all rows (float32, shape `[local]`), and the number of rows in the global batch (int64).

    Raises:
        InputError: when parts of the batch have inconsistent numbers of rows; in a graph that does
            not know them, an InvalidArgumentError, which `sharding_error` converts.
    """
    rows, factors = _row_counts([t for t in tf.nest.flatten(batch) if not is_absent(t)], sharding)
    parts, fractions = [], []
    for block in placement.blocks:
        start, size = _block(rows, block, placement.replicas)
        if sharding.undersized == "whole":
            undersized, nothing = rows < placement.replicas, tf.zeros_like(rows)
            start, size = tf.where(undersized, nothing, start), tf.where(undersized, rows, size)
            fractions.append(
                _fraction(tf.where(undersized, nothing, size) if block else size, rows)
            )
        else:
            fractions.append(_fraction(size, rows))
        if sharding.undersized == "last":
            start = tf.minimum(start, tf.maximum(rows - 1, 0))
            size = tf.maximum(size, tf.minimum(rows, 1))
        rest = iter(factors)
        parts.append(
            tf.nest.map_structure(
                lambda t, a=start, n=size, f=rest: _take_rows(t, a, n, f),
                batch,
            )
        )
    return tuple(parts), tf.stack(fractions), rows


def own_numbers(
    rows: int, placement: Placement, sharding: ShardingOptions = DEFAULT_SHARDING
) -> npt.NDArray[np.int64]:
    """The rows of a batch that `shard_batch` assigns to our replicas (int64), in ascending order.

    >>> own_numbers(10, Placement(workers=2, rank=1, local=2)).tolist()
    [3, 4, 5, 8, 9]
    """
    if sharding.undersized == "whole" and rows < placement.replicas:
        return np.arange(rows)
    size, more = divmod(rows, placement.replicas)
    taken = [
        np.arange(block * size + min(block, more), (block + 1) * size + min(block + 1, more))
        for block in placement.blocks
    ]
    if sharding.undersized == "last" and rows and not all(map(len, taken)):
        taken.append(np.asarray([rows - 1]))
    return np.unique(np.concatenate(taken)).astype(np.int64)


@tf.autograph.experimental.do_not_convert
def shard_own_rows(
    own: Any,
    numbers: tf.Tensor,
    rows: tf.Tensor,
    placement: Placement,
    sharding: ShardingOptions = DEFAULT_SHARDING,
) -> tuple[tuple[Any, ...], tf.Tensor, tf.Tensor]:
    """Shards one global batch of which only our rows are present.

    Args:
        own: a nest of dense, ragged or sparse tensors, or absent values, all with our rows.
        numbers: their indices in the batch, as `own_numbers` (int64, shape `[n]`).
        rows: how many the batch has (int64 scalar).
        placement: which blocks are ours.
        sharding: as in `shard_batch`; all parts have the same rows.

    Returns:
        As `shard_batch`.
    """
    blocks, fractions, rows = shard_batch(tf.range(rows), placement, sharding)
    parts = []
    for block in blocks:
        before = tf.cast(numbers < tf.reduce_min(block), tf.int64)
        start, size = tf.reduce_sum(before), tf.size(block, tf.int64)
        parts.append(
            tf.nest.map_structure(
                lambda t, a=start, n=size: _take_rows(t, a, n, itertools.repeat(None)), own
            )
        )
    return tuple(parts), fractions, rows


_UNEVEN = (
    "tfaccel: the components of a batch have different first dimensions; all components of a batch "
    "must have the same batch dimension; reshape or repeat a component in the dataset, or move "
    "what is not per row into the model. Found"
)


def sharding_error(error: tf.errors.InvalidArgumentError) -> Exception:
    """The error to raise for one of a dataset that `shard_batch` is mapped over."""
    found = re.search(re.escape(_UNEVEN) + r"\]? ?\[?([\d ]+)", error.message)
    return error if found is None else uneven(found[1].split())


def uneven(found: list[Any]) -> InputError:
    """The error to raise for parts of a batch with inconsistent numbers of rows."""
    return InputError(f"{_UNEVEN} {', '.join(map(str, found))}.")


def static_row_count(leaves: list[Any], multiples: bool) -> int | None:
    """The number of rows of a batch, if known without reading values.

    Args:
        leaves: the tensors of a batch.
        multiples: as in `ShardingOptions`.

    Raises:
        InputError: when the leaves have inconsistent numbers of rows.
    """
    found = [leaf.shape[0] for leaf in leaves]
    if any(count is None for count in found):
        return None
    others = [count for count in found if count != 1]
    rows = min(others, default=1)
    fits = [c == 1 or c == rows or (multiples and rows > 0 and c % rows == 0) for c in found]
    if not all(fits):
        raise uneven(found)
    return int(rows)


def _row_counts(leaves: list[Any], sharding: ShardingOptions) -> tuple[tf.Tensor, list[Any]]:
    """The rows of a batch, and how many rows of each leaf belong to one (None for one).

    A leaf that goes whole to every replica has factor 0.
    """
    first, known = row_count(leaves[0]), leaves[0].shape[0]
    counts = [
        None if known is not None and leaf.shape[0] == known else row_count(leaf)
        for leaf in leaves[1:]
    ]
    if all(count is None for count in counts):
        return first, [None] * len(leaves)
    static_row_count(leaves, sharding.multiples)
    found = tf.stack([first, *(count for count in counts if count is not None)])
    rows = tf.reduce_min(tf.where(found == 1, tf.reduce_max(found), found))
    one = tf.maximum(rows, 1)
    fits = (found == 1) | (found == rows)
    if sharding.multiples:
        fits |= (found % one == 0) & (found > rows) & (rows > 0)
    with tf.control_dependencies(
        [tf.debugging.Assert(tf.reduce_all(fits), [_UNEVEN, found], summarize=32)]
    ):
        rows = tf.identity(rows)
    # With no rows, each leaf is split like the others.
    factors = iter(tf.unstack(tf.where(rows == 0, tf.ones_like(found), found // one)))
    of_first = next(factors)
    return rows, [of_first, *(of_first if c is None else next(factors) for c in counts)]


def row_count(tensor: Any) -> tf.Tensor:
    """The number of rows of a dense, ragged or sparse tensor (int64 scalar)."""
    if isinstance(tensor, tf.SparseTensor):
        return tensor.dense_shape[0]
    if isinstance(tensor, tf.RaggedTensor):
        return tf.cast(tensor.nrows(), tf.int64)
    return tf.shape(tensor, out_type=tf.int64)[0]


def _block(rows: tf.Tensor, block: int, blocks: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Start and size of one of `blocks` blocks over `rows` rows."""
    base, rest = rows // blocks, rows % blocks
    size = base + tf.cast(block < rest, tf.int64)
    return block * base + tf.minimum(tf.constant(block, tf.int64), rest), size


def _fraction(size: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    return tf.cast(
        tf.math.divide_no_nan(tf.cast(size, tf.float64), tf.cast(rows, tf.float64)), tf.float32
    )


def _take_rows(tensor: Any, start: tf.Tensor, size: tf.Tensor, factors: Iterator[Any]) -> Any:
    if is_absent(tensor):
        return None
    factor = next(factors)
    if factor is not None:
        start = start * factor
        size = tf.where(factor == 0, tf.ones_like(size), size * factor)
    if isinstance(tensor, tf.SparseTensor):
        rest = tensor.dense_shape[1:]
        begin = tf.concat([[start], tf.zeros_like(rest)], axis=0)
        return tf.sparse.slice(tensor, begin, tf.concat([[size], rest], axis=0))
    return tensor[start : start + size]


def is_absent(leaf: Any) -> bool:
    """Whether a leaf of a batch, or of its spec, stands for None: an absent input or weights.

    Keras's generators pass None to `tf.data` as an Optional, and its steps treat any as None.

    >>> is_absent(None), is_absent(tf.OptionalSpec(None)), is_absent(tf.zeros(2))
    (True, True, False)
    """
    nothing = (tf.experimental.Optional, tf.OptionalSpec, tf.NoneTensorSpec)
    return leaf is None or isinstance(leaf, nothing)
