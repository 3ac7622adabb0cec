"""Cutting a dataset: what its batches may be, and arrays before their rows are gathered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

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
