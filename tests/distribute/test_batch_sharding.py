"""Cutting a batch: every row once, in the order in which Keras puts predictions together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfaccel.distribute.batch_sharding import Placement, ShardingOptions, shard_batch
from tfaccel.distribute.batches import Batches, shard_host_batch
from tfaccel.distribute.dataset_sharding import shard_dataset
from tfaccel.errors import InputError

PLACES = [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (3, 1), (4, 2)]


def all_parts(batch: Any, workers: int, local: int) -> list[Any]:
    """The parts of all replicas, in the order of Keras's `predict`."""
    ranks = [shard_batch(batch, Placement(workers, rank, local)) for rank in range(workers)]
    return [ranks[rank][0][replica] for replica in range(local) for rank in range(workers)]


@pytest.mark.parametrize(("workers", "local"), PLACES)
def test_every_row_once_and_in_order(workers: int, local: int) -> None:
    for rows in range(21):
        parts = all_parts(tf.range(rows), workers, local)
        assert np.concatenate(parts).tolist() == list(range(rows))
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("workers", "local"), PLACES)
def test_batch_fractions_add_up(workers: int, local: int) -> None:
    shares = []
    for rank in range(workers):
        _, own, rows = shard_batch(tf.zeros((11, 2)), Placement(workers, rank, local))
        assert int(rows) == 11
        shares += own.numpy().tolist()
    assert sum(shares) == pytest.approx(1.0)


def test_kinds_of_tensors() -> None:
    batch = {
        "dense": tf.reshape(tf.range(10), (5, 2)),
        "text": (tf.constant(["a", "b", "c", "d", "e"]),),
        "ragged": tf.ragged.constant([[1], [2, 3], [], [4], [5, 6]]),
        "sparse": tf.sparse.from_dense(tf.eye(5)),
    }
    first, second = all_parts(batch, 1, 2)
    assert first["dense"].shape == (3, 2)
    assert second["text"][0].numpy().tolist() == [b"d", b"e"]
    assert first["ragged"].to_list() == [[1], [2, 3], []]
    assert second["ragged"].to_list() == [[4], [5, 6]]
    np.testing.assert_array_equal(tf.sparse.to_dense(second["sparse"]), np.eye(5)[3:])


def test_what_is_none_stays_none_and_has_no_rows() -> None:
    nothing = tf.experimental.Optional.empty(None)  # so a generator of Keras says it
    first, second = all_parts((None, {"a": nothing, "b": tf.range(5)}, nothing), 1, 2)
    for part, rows in ((first, [0, 1, 2]), (second, [3, 4])):
        assert part[0] is part[1]["a"] is part[2] is None
        assert part[1]["b"].numpy().tolist() == rows


def test_the_first_replica_takes_few_rows_and_the_others_copies() -> None:
    for few, found in {"whole": [[7, 8], [7, 8], [7, 8]], "last": [[7], [8], [8]]}.items():
        parts, shares, rows = shard_batch(
            tf.constant([7, 8]), Placement(1, 0, 3), ShardingOptions(few)
        )
        assert [part.numpy().tolist() for part in parts] == found
        assert shares.numpy().tolist() == ([1, 0, 0] if few == "whole" else [0.5, 0.5, 0])
        assert int(rows) == 2
        enough, shares, _ = shard_batch(
            tf.constant([7, 8, 9, 10]), Placement(1, 0, 3), ShardingOptions(few)
        )
        assert [len(part) for part in enough] == [2, 1, 1]
        assert shares.numpy().tolist() == [0.5, 0.25, 0.25]


def unknown(*rows: int) -> tf.data.Dataset:
    """One batch whose parts have these first dimensions, which are not known before it comes."""
    parts = tuple(tf.data.Dataset.range(n).batch(n) for n in rows)
    return tf.data.Dataset.zip(parts)


def test_parts_of_a_batch_are_sharded_each_by_its_own_rows() -> None:
    """Unlabelled rows beside labelled ones, and a part that is no row."""
    for data in (unknown(9, 3, 1), tf.data.Dataset.from_tensors(tuple(map(tf.range, (9, 3, 1))))):
        ((first, second), shares, rows) = next(
            iter(shard_dataset(data, Placement(1, 0, 2), sharding=ShardingOptions(multiples=True)))
        )
        assert [part.numpy().tolist() for part in first] == [[0, 1, 2, 3, 4, 5], [0, 1], [0]]
        assert [part.numpy().tolist() for part in second] == [[6, 7, 8], [2], [0]]
        np.testing.assert_allclose(shares, [2 / 3, 1 / 3], rtol=1e-6)
        assert int(rows) == 3


@pytest.mark.parametrize("rows", [(16, 20, 16), (16, 8), (16, 16, 1, 2)])
def test_parts_of_different_rows_are_refused(rows: tuple[int, ...]) -> None:
    says = f"different first dimensions.*Found {', '.join(map(str, rows))}"
    two, devices = Placement(1, 0, 2), ("CPU:0", "CPU:0")
    with pytest.raises(InputError, match=says):
        list(Batches(unknown(*rows), two, devices))
    with pytest.raises(InputError, match=says):
        Batches(tf.data.Dataset.from_tensors(tuple(map(tf.range, rows))), two, devices)
    with pytest.raises(InputError, match=says):
        shard_host_batch(tuple(map(tf.range, rows)), two)
