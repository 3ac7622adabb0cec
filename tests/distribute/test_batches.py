"""How Keras reads batches: it looks at one first, and ends in two ways."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import tensorflow as tf

from tfaccel.distribute.batch_iterator import without_autotune
from tfaccel.distribute.batch_sharding import Placement
from tfaccel.distribute.batches import (
    ABSENT,
    Batches,
    Sharded,
    ShardedWithEmpty,
    absent_to_none,
    shard_host_batch,
)

TWO = Placement(1, 0, 2)


def batches(dataset: tf.data.Dataset) -> Batches:
    return Batches(dataset, TWO, ("/CPU:0", "/CPU:0"))


def rows(batch: Sharded) -> list[int]:
    return [int(i) for part in batch.data.values for i in part]


def from_generator() -> tuple[tf.data.Dataset, list[int]]:
    made: list[int] = []

    def generate() -> Iterator[list[int]]:
        for start in range(0, 12, 4):
            made.append(start)
            yield list(range(start, start + 4))

    return tf.data.Dataset.from_generator(generate, output_signature=tf.TensorSpec([4])), made


def test_a_look_costs_a_generator_nothing() -> None:
    dataset, made = from_generator()
    data = batches(dataset)
    assert rows(next(iter(data))) == [0, 1, 2, 3]  # looked at, and left
    assert [rows(batch) for batch in data] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert made == [0, 4, 8]


@pytest.mark.parametrize(("asked", "found"), [(None, False), (True, True), (False, False)])
def test_no_thread_tunes_a_dataset_unless_it_was_asked_for(asked: bool | None, found: bool) -> None:
    """The end of a pass would wait for it."""
    options = tf.data.Options()
    if asked is not None:
        options.autotune.enabled = asked
    dataset = tf.data.Dataset.range(8).batch(4).with_options(options)
    assert without_autotune(dataset).options().autotune.enabled is found
    assert batches(dataset)._dataset.options().autotune.enabled is found
    assert [rows(batch) for batch in batches(dataset)] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_pass_that_is_under_way_is_not_taken_over() -> None:
    data = batches(tf.data.Dataset.range(12).batch(4))
    reader = iter(data)
    next(reader)
    other = iter(data)
    assert rows(next(other)) == [0, 1, 2, 3]
    assert rows(next(reader)) == [4, 5, 6, 7]


def test_a_pass_of_one_batch_that_was_used_is_not_repeated() -> None:
    data = batches(tf.data.Dataset.range(40).shuffle(40, seed=1).batch(40))
    first = iter(data)
    order = rows(next(first))
    second = iter(data)  # Keras requests the next pass while it holds the last one
    del first
    assert rows(next(second)) != order


def test_a_pass_that_has_ended_begins_anew() -> None:
    data = batches(tf.data.Dataset.range(4).batch(4))
    assert [rows(batch) for batch in data] == [[0, 1, 2, 3]]
    assert [rows(batch) for batch in data] == [[0, 1, 2, 3]]


def test_the_end_raises_at_the_start_of_an_execution_and_stops_inside_one() -> None:
    reader = iter(batches(tf.data.Dataset.range(12).batch(4)))
    executions = [[rows(b) for _, b in zip(range(2), reader, strict=False)] for _ in range(2)]
    assert [len(execution) for execution in executions] == [2, 1]
    with pytest.raises(tf.errors.OutOfRangeError):
        next(iter(reader))


def test_a_batch_with_too_few_rows_is_marked() -> None:
    found = [type(batch) for batch in batches(tf.data.Dataset.range(5).batch(4))]
    assert found == [Sharded, ShardedWithEmpty]
    assert isinstance(shard_host_batch((tf.zeros((1, 2)), None), TWO), ShardedWithEmpty)
    (batch,) = list(batches(tf.data.Dataset.range(1).batch(4)))
    # Every replica has its row, which counts once.
    assert [part.numpy().tolist() for part in batch.data.values] == [[0], [0]]
    assert [float(share) for share in batch.batch_fraction.values] == [1.0, 0.0]
    assert [real.numpy().tolist() for real in batch.real.values] == [[True], [False]]
    cut = shard_host_batch((tf.zeros((3, 2)), None), TWO)
    assert isinstance(cut, Sharded)
    assert [part.shape[0] for part in cut.data[0].values] == [2, 1]
    assert cut.data[1] is ABSENT


@pytest.mark.parametrize(
    ("partial_batch", "sizes"), [("exact", [4, 2]), ("pad", [4, 4]), ("drop", [4])]
)
def test_none_is_a_distributed_value_until_the_step(partial_batch: str, sizes: list[int]) -> None:
    data = tf.data.Dataset.range(6).batch(4).map(lambda i: ({"a": None, "b": i}, None))
    found = list(Batches(data, TWO, ("/CPU:0", "/CPU:0"), partial_batch))
    assert [sum(len(part) for part in batch.data[0]["b"].values) for batch in found] == sizes
    for batch in found:
        leaves = tf.nest.flatten(batch.data)
        assert all(isinstance(leaf, tf.distribute.DistributedValues) for leaf in leaves)
        named, weights = absent_to_none(batch.data)
        assert named["a"] is weights is None
        assert named["b"] is batch.data[0]["b"]


@pytest.mark.parametrize(
    ("size", "drop", "seen"), [(4, True, 2), (4, False, None), (3, True, None), (1, True, None)]
)
def test_a_static_number_of_rows_stays_static(size: int, drop: bool, seen: int | None) -> None:
    """Where replicas have equal parts of every batch, a step may read `x.shape[0]`."""
    dataset = tf.data.Dataset.range(9).batch(size, drop_remainder=drop)
    part = next(iter(batches(dataset))).data
    specs = tf.type_spec_from_value(part)._component_specs
    assert [spec.shape[0] for spec in specs] == [seen, seen]
