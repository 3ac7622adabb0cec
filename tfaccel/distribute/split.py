"""Cuts a global batch into the rows of each replica, inside `tf.data`.

Replica `m` of `N` gets a contiguous block of the batch's rows; when the rows do not divide, the
first replicas get one more. The blocks are dealt to workers in turn (worker `w` of `W` holds
`w, w + W, …`), which is the order in which Keras's `predict` puts them together again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from tfaccel.distribute import _private
from tfaccel.errors import InputError


@dataclass(frozen=True)
class Placement:
    """Which of all replicas run in this process.

    Attributes:
        workers: number of processes.
        rank: which of them we are.
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


@tf.autograph.experimental.do_not_convert
def split(batch: Any, placement: Placement) -> tuple[tuple[Any, ...], tf.Tensor, tf.Tensor]:
    """Cuts one global batch.

    Args:
        batch: a nest of dense, ragged or sparse tensors that share their first dimension, or of
            what `is_nothing`.
        placement: which blocks are ours.

    Returns:
        The part of `batch` for each of our replicas (None where nothing was given), each one's
        share of all rows (float32, shape `[local]`), and the number of rows in the whole batch
        (int64).
    """
    rows = _rows(batch)
    parts, shares = [], []
    for block in placement.blocks:
        start, size = _block(rows, block, placement.replicas)
        parts.append(tf.nest.map_structure(lambda t, a=start, n=size: _rows_of(t, a, n), batch))
        shares.append(_share(size, rows))
    return tuple(parts), tf.stack(shares), rows


def split_dataset(
    dataset: tf.data.Dataset, placement: Placement, read_ahead: bool = True
) -> tf.data.Dataset:
    """Maps `split` over a dataset of global batches.

    Arrays given to `fit` are cut before their rows are gathered, so that a worker copies only the
    rows its own replicas need.

    Args:
        dataset: of global batches.
        placement: which blocks of rows are ours.
        read_ahead: whether batches are made before they are asked for.

    Raises:
        InputError: when an element of `dataset` is not a batch.
    """
    check_batched(dataset.element_spec)
    if not read_ahead:
        return dataset.map(
            lambda *batch: split(batch if len(batch) > 1 else batch[0], placement)
        ).with_options(dataset.options())
    arrays = _private.array_pipeline(dataset)
    if arrays is None:
        divided = dataset.map(
            lambda *batch: split(batch if len(batch) > 1 else batch[0], placement),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
    else:
        pairs, functions = arrays
        divided = pairs.map(
            lambda indices, data: _gather_own(indices, data, functions, placement),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
    return divided.with_options(dataset.options()).prefetch(tf.data.AUTOTUNE)


@tf.autograph.experimental.do_not_convert
def _gather_own(indices: tf.Tensor, data: Any, functions: list[Any], placement: Placement) -> Any:
    """One batch of Keras's array pipeline, for our replicas' rows alone."""
    own, shares, rows = split(indices, placement)
    parts = []
    for part in own:
        batch = functions[0](part, data)
        for function in functions[1:]:
            batch = function(*batch) if isinstance(batch, tuple) else function(batch)
        parts.append(batch)
    return tuple(parts), shares, rows


def check_batched(spec: Any) -> None:
    """Raises when an element of a dataset is not a batch.

    Raises:
        InputError: says what the dataset yields.
    """
    if any(s.shape.rank == 0 for s in tf.nest.flatten(spec) if hasattr(s, "shape")):
        given = [s for s in tf.nest.flatten(spec) if not is_nothing(s)]
        shapes = ", ".join(f"{s.dtype.name}{s.shape}" for s in given)
        raise InputError(
            f"tfaccel: the dataset yields ({shapes}), expected batches whose first dimension is "
            "the rows; batch it with dataset.batch(global_batch_size)."
        )


def _rows(batch: Any) -> tf.Tensor:
    first = next(t for t in tf.nest.flatten(batch) if not is_nothing(t))
    if isinstance(first, tf.SparseTensor):
        return first.dense_shape[0]
    if isinstance(first, tf.RaggedTensor):
        return tf.cast(first.nrows(), tf.int64)
    return tf.shape(first, out_type=tf.int64)[0]


def _block(rows: tf.Tensor, block: int, blocks: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Start and size of one of `blocks` blocks of `rows` rows."""
    base, rest = rows // blocks, rows % blocks
    size = base + tf.cast(block < rest, tf.int64)
    return block * base + tf.minimum(tf.constant(block, tf.int64), rest), size


def _share(size: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    return tf.cast(
        tf.math.divide_no_nan(tf.cast(size, tf.float64), tf.cast(rows, tf.float64)), tf.float32
    )


def _rows_of(tensor: Any, start: tf.Tensor, size: tf.Tensor) -> Any:
    if is_nothing(tensor):
        return None
    if isinstance(tensor, tf.SparseTensor):
        rest = tensor.dense_shape[1:]
        begin = tf.concat([[start], tf.zeros_like(rest)], axis=0)
        return tf.sparse.slice(tensor, begin, tf.concat([[size], rest], axis=0))
    return tensor[start : start + size]


def is_nothing(leaf: Any) -> bool:
    """Whether a leaf of a batch, or of its spec, stands for None: an input or weights not given.

    Keras's generators hand None to `tf.data` as an Optional, and its steps take any for None.

    >>> is_nothing(None), is_nothing(tf.OptionalSpec(None)), is_nothing(tf.zeros(2))
    (True, True, False)
    """
    nothing = (tf.experimental.Optional, tf.OptionalSpec, tf.NoneTensorSpec)
    return leaf is None or isinstance(leaf, nothing)
