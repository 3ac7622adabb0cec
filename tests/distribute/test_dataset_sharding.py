"""Cutting a dataset: what its batches may be, and arrays before their rows are gathered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfaccel.distribute import _private
from tfaccel.distribute.batch_sharding import Placement
from tfaccel.distribute.dataset_sharding import shard_dataset
from tfaccel.errors import InputError


def test_a_dataset_may_yield_none() -> None:
    data = tf.data.Dataset.range(6).batch(4).map(lambda i: (None, i, None))
    found = list(shard_dataset(data, Placement(1, 0, 2)))
    assert [int(rows) for _, _, rows in found] == [4, 2]
    assert [[part[1].numpy().tolist() for part in parts] for parts, _, _ in found] == [
        [[0, 1], [2, 3]],
        [[4], [5]],
    ]
    assert all(part[0] is part[2] is None for parts, _, _ in found for part in parts)


def test_what_is_no_batch_is_refused() -> None:
    single = tf.data.Dataset.range(4).map(lambda i: {"x": tf.zeros(3), "i": i})
    with pytest.raises(InputError, match=r"yields \(int64\(\), .*dataset.batch\("):
        shard_dataset(single, Placement(1, 0, 2))
    with pytest.raises(InputError, match=r"yields \(int64\(\)\)"):
        shard_dataset(single.map(lambda row: (row["i"], None)), Placement(1, 0, 2))


def rows_of(start: tf.Tensor) -> tf.data.Dataset:
    return tf.data.Dataset.range(start, start + 2)


def add(i: tf.Tensor) -> tf.Tensor:
    return i + tf.random.uniform([], maxval=9, dtype=tf.int64)


def in_any_order(start: tf.Tensor) -> tf.data.Dataset:
    return rows_of(start).interleave(rows_of, num_parallel_calls=2, deterministic=False)


FOUR = tf.data.Dataset.range(4)
ANY_ORDER = {
    "interleave of rows_of at test_dataset_sharding.py": lambda: FOUR.interleave(
        rows_of, num_parallel_calls=2, deterministic=False
    ).shuffle(9, seed=1),
    "interleave of in_any_order at test_dataset_sharding.py": lambda: FOUR.interleave(
        in_any_order, num_parallel_calls=2
    ),
    "flat_map of in_any_order at test_dataset_sharding.py": lambda: FOUR.flat_map(in_any_order),
    "map of add at test_dataset_sharding.py": lambda: (
        FOUR.map(add, num_parallel_calls=2, deterministic=False)
        .interleave(rows_of, num_parallel_calls=2)
        .map(lambda i: 2 * i)
    ),
    "interleave of <lambda> at": lambda: FOUR.apply(
        tf.data.experimental.parallel_interleave(lambda i: rows_of(i), 2, sloppy=True)
    ),
}


@pytest.mark.parametrize("what", ANY_ORDER)
def test_several_workers_refuse_rows_in_any_order(what: str) -> None:
    """Each would train on rows in an order of its own."""
    data = ANY_ORDER[what]().batch(4)
    with pytest.raises(InputError, match=f"the {what}.* has deterministic=False.*per_worker"):
        shard_dataset(data, Placement(2, 0, 1))
    shard_dataset(data, Placement(1, 0, 2))


def test_a_map_of_own_rows_may_have_any_order() -> None:
    """It is replaced by one that keeps it."""
    data = FOUR.interleave(rows_of, num_parallel_calls=2, deterministic=True)
    data = data.map(lambda i: 2 * i, num_parallel_calls=2, deterministic=False).batch(4)
    (first, *_), *_ = shard_dataset(data, Placement(2, 0, 1))
    assert first[0].numpy().tolist() == [0, 2]


def test_large_tensors_are_not_copied_to_find_any_order(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_private.datasets, "_MOST_BYTES_COPIED", 31)
    data = tf.data.Dataset.from_tensor_slices(tf.range(4, dtype=tf.int64))
    shard_dataset(data.interleave(rows_of, num_parallel_calls=2).batch(4), Placement(2, 0, 1))
    assert "whether the interleave of rows_of at test_dataset_sharding.py" in caplog.text


@pytest.mark.parametrize("shuffle", [False, True, "batch"])
def test_arrays_are_sharded_before_their_rows_are_gathered(shuffle: Any) -> None:
    """Two workers together gather what one process gathers, and each only its half."""
    x = np.arange(22, dtype="float32")[:, None]

    def gathered(placement: Placement) -> list[np.ndarray]:
        from keras.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter

        tf.random.set_seed(3)
        adapter = ArrayDataAdapter(x, batch_size=8, shuffle=shuffle)
        data = shard_dataset(adapter.get_tf_dataset(), placement)
        return [tf.nest.flatten(parts)[0].numpy()[:, 0] for parts, _, _ in data]

    whole = gathered(Placement(1, 0, 1))
    halves = [gathered(Placement(2, rank, 1)) for rank in (0, 1)]
    assert [len(batch) for batch in halves[0]] == [4, 4, 3]
    for batch, first, second in zip(whole, *halves, strict=True):
        assert np.concatenate([first, second]).tolist() == batch.tolist()
    assert sorted(np.concatenate(whole)) == list(range(22))
