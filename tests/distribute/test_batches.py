"""How Keras reads batches: it looks at one first, and ends in two ways."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import tensorflow as tf

from tfaccel.distribute._private import PerReplicaBatch
from tfaccel.distribute.batch_iterator import without_autotune
from tfaccel.distribute.batch_sharding import Placement
from tfaccel.distribute.batches import Batches, shard_host_batch

TWO = Placement(1, 0, 2)


def batches(dataset: tf.data.Dataset) -> Batches:
    return Batches(dataset, TWO, ("/CPU:0", "/CPU:0"))


def rows(batch: PerReplicaBatch) -> list[int]:
    return [int(i) for part in batch.values for i in part.data]


def from_generator() -> tuple[tf.data.Dataset, list[int]]:
    made: list[int] = []

    def generate() -> Iterator[list[int]]:
        for start in range(0, 12, 4):
            made.append(start)
            yield list(range(start, start + 4))

    return tf.data.Dataset.from_generator(generate, output_signature=tf.TensorSpec([4])), made


def test_inspecting_a_batch_takes_none_from_a_generator() -> None:
    dataset, made = from_generator()
    data = batches(dataset)
    assert rows(next(iter(data))) == [0, 1, 2, 3]  # looked at, and left
    assert [rows(batch) for batch in data] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert made == [0, 4, 8]


@pytest.mark.parametrize(("asked", "found"), [(None, False), (True, True), (False, False)])
def test_no_thread_tunes_a_dataset_unless_requested(asked: bool | None, found: bool) -> None:
    """The end of a pass would wait for it."""
    options = tf.data.Options()
    if asked is not None:
        options.autotune.enabled = asked
    dataset = tf.data.Dataset.range(8).batch(4).with_options(options)
    assert without_autotune(dataset).options().autotune.enabled is found
    assert batches(dataset)._dataset.options().autotune.enabled is found
    assert [rows(batch) for batch in batches(dataset)] == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize(("workers", "found"), [(2, True), (1, False)])
def test_several_workers_read_rows_in_one_order(workers: int, found: bool) -> None:
    """They take them by position."""
    options = tf.data.Options()
    options.deterministic = False
    dataset = tf.data.Dataset.range(8).batch(4).with_options(options)
    data = Batches(dataset, Placement(workers, 0, 1), ("/CPU:0",))
    assert data._dataset.options().deterministic is found


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
    data = batches(tf.data.Dataset.range(5).batch(4))
    assert [batch.has_empty_replicas for batch in data] == [False, True]
    assert shard_host_batch((tf.zeros((1, 2)), None), TWO).has_empty_replicas
    (batch,) = list(batches(tf.data.Dataset.range(1).batch(4)))
    # Every replica has its row, which counts once.
    assert [part.data.numpy().tolist() for part in batch.values] == [[0], [0]]
    assert [float(part.batch_fraction) for part in batch.values] == [1.0, 0.0]
    assert [part.real.numpy().tolist() for part in batch.values] == [[True], [False]]
    split = shard_host_batch((tf.zeros((3, 2)), None), TWO)
    assert not split.has_empty_replicas
    assert [part.data[0].shape[0] for part in split.values] == [2, 1]
    assert [part.data[1] for part in split.values] == [None, None]


@pytest.mark.parametrize(
    ("partial_batch", "sizes"), [("exact", [4, 2]), ("pad", [4, 4]), ("drop", [4])]
)
def test_none_stays_none_in_each_part(partial_batch: str, sizes: list[int]) -> None:
    data = tf.data.Dataset.range(6).batch(4).map(lambda i: ({"a": None, "b": i}, None))
    found = list(Batches(data, TWO, ("/CPU:0", "/CPU:0"), partial_batch))
    assert [sum(len(part.data[0]["b"]) for part in batch.values) for batch in found] == sizes
    for batch in found:
        assert isinstance(batch, tf.distribute.DistributedValues)  # the only leaf that Keras sees
        assert all(part.data[0]["a"] is part.data[1] is None for part in batch.values)


@pytest.mark.parametrize(
    ("size", "drop", "seen"), [(4, True, 2), (4, False, None), (3, True, None), (1, True, None)]
)
def test_a_static_number_of_rows_stays_static(size: int, drop: bool, seen: int | None) -> None:
    """Where replicas have equal parts of every batch, a step may read `x.shape[0]`."""
    dataset = tf.data.Dataset.range(9).batch(size, drop_remainder=drop)
    spec = tf.type_spec_from_value(next(iter(batches(dataset))))
    assert [part.data.shape[0] for part in spec._serialize()[0]] == [seen, seen]
