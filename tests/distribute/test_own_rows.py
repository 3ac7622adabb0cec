"""Own rows: a worker's part of each global batch, of which it computes no other row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.distribute import own_rows_pipelines as pipelines
from tfaccel.distribute import own_rows
from tfaccel.distribute.batch_sharding import Placement, ShardingOptions
from tfaccel.distribute.dataset_sharding import shard_dataset


def gathered(dataset: Any, workers: int, local: int, undersized: str) -> list[Any]:
    """The global batches, put together from the parts of all replicas of all workers."""
    sharding = ShardingOptions(undersized)
    ranks = [
        list(shard_dataset(dataset, Placement(workers, rank, local), sharding=sharding))
        for rank in range(workers)
    ]
    batches = []
    for elements in zip(*ranks, strict=True):
        parts = [elements[rank][0][replica] for replica in range(local) for rank in range(workers)]
        fractions = [
            float(elements[r][1][replica]) for replica in range(local) for r in range(workers)
        ]
        counted = [part for part, fraction in zip(parts, fractions, strict=True) if fraction]
        batches.append(tf.nest.map_structure(lambda *leaves: tf.concat(leaves, 0), *counted))
    return batches


def assert_same(found: list[Any], expected: Any) -> None:
    for one, other in zip(found, expected, strict=True):
        tf.nest.map_structure(
            lambda a, b: np.testing.assert_array_equal(_plain(a), _plain(b)), one, other
        )


def _plain(tensor: Any) -> Any:
    return tensor.to_tensor() if isinstance(tensor, tf.RaggedTensor) else tensor


@pytest.mark.parametrize(
    ("workers", "local", "undersized"),
    [(2, 1, "whole"), pytest.param(3, 2, "last", marks=pytest.mark.exhaustive)],
)
@pytest.mark.parametrize("make", pipelines.MOVED, ids=lambda make: make.__name__)
def test_global_batches_are_the_same_row_by_row(
    make: Callable[[], Any], workers: int, local: int, undersized: str
) -> None:
    moved, over_all_rows = own_rows.move_cut(make())
    assert moved is not None
    assert over_all_rows == []
    assert_same(gathered(make(), workers, local, undersized), make())


@pytest.mark.parametrize("make", pipelines.STAYS, ids=lambda make: make.__name__)
def test_what_would_change_the_rows_is_not_moved_and_the_reason_is_told(
    make: Callable[[], Any],
) -> None:
    moved, over_all_rows = own_rows.move_cut(make())
    assert moved is None
    assert over_all_rows
    assert make.__doc__ in over_all_rows[0]
    assert "own_rows_pipelines.py:" in over_all_rows[0]
    assert_same(gathered(make(), 2, 1, "whole"), make())


def test_each_reason_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="absl"):
        for make in pipelines.STAYS:
            caplog.clear()
            shard_dataset(make(), Placement(2, 0, 1))
            said = [record.getMessage() for record in caplog.records]
            lines = [line for line in said if "tfaccel: input:" in line]
            assert len(set(lines)) == len(lines)
            assert str(make.__doc__) in lines[0]
            for line in lines:
                assert line.startswith("tfaccel: input: every worker computes all rows in the ")
                assert " at own_rows_pipelines.py:" in line
        caplog.clear()
        shard_dataset(pipelines.mapped(), Placement(2, 0, 1))
        assert not [r for r in caplog.records if "tfaccel: input:" in r.getMessage()]


def test_rows_of_other_shapes_may_stand_at_the_cut() -> None:
    moved, (line,) = own_rows.move_cut(pipelines.rows_of_other_shapes_at_the_cut())
    assert moved is not None
    assert line.endswith("filter comes after it")
    made = pipelines.rows_of_other_shapes_at_the_cut
    assert_same(gathered(made(), 2, 1, "whole"), made())


@pytest.mark.parametrize("last", [2, pytest.param(3, marks=pytest.mark.exhaustive)])
def test_a_replica_without_rows_gets_none_of_an_unknown_shape(last: int) -> None:
    def row(i: Any) -> Any:
        free = tf.cast(i - i + 3, tf.int32)
        return tf.fill([free], i), {"text": tf.fill([free, 2], "a")}

    made = tf.data.Dataset.range(4 + last).map(row).batch(4)
    *_, (parts, fractions, rows) = shard_dataset(made, Placement(2, 1, 2))
    assert int(rows) == last
    assert fractions.numpy().tolist() == [np.float32(1 / last), 0.0]
    *_, whole = made
    assert_same([parts[0]], [tf.nest.map_structure(lambda leaf: leaf[1:2], whole)])
    assert [leaf.shape for leaf in tf.nest.flatten(parts[1])] == [[0, 0], [0, 0, 2]]


def test_a_map_inside_a_reader_is_told_where_the_cut_moves_too() -> None:
    files = tf.data.Dataset.range(5).interleave(lambda i: pipelines.rows(i).map(lambda j: j + 1))
    moved, (line,) = own_rows.move_cut(files.map(pipelines.double).batch(8))
    assert moved is not None
    assert "interleave of <lambda> at test_own_rows.py:" in line
    assert line.endswith("what it maps would run on own rows alone in a map after it")


def test_a_count_that_is_wrong_is_still_an_error() -> None:
    for made in (pipelines.rows_counted, pipelines.batches_counted):
        short = made().repeat(1)
        wrong = short.apply(tf.data.experimental.assert_cardinality(4))
        with pytest.raises(tf.errors.FailedPreconditionError, match="expected to contain 4"):
            list(shard_dataset(wrong, Placement(2, 0, 1)))


@pytest.mark.parametrize("make", ["generator", "drawn"])
def test_a_cache_of_rows_that_differ_is_not_moved(make: str) -> None:
    read: Any = tf.data.Dataset.range(4)
    if make == "generator":
        read = tf.data.Dataset.from_generator(lambda: range(4), output_signature=tf.TensorSpec([]))
    else:
        read = read.interleave(
            lambda i: tf.data.Dataset.from_tensors(i).map(lambda _: tf.random.uniform([]))
        )
    moved, lines = own_rows.move_cut(read.map(lambda x: 2 * x).cache().batch(4))
    assert moved is None
    assert lines[0].endswith("cache comes after it")


def test_a_map_that_keeps_a_state_is_not_moved() -> None:
    moved, (why,) = own_rows.move_cut(pipelines.counts_rows())
    assert moved is None
    assert "may keep a state from row to row" in why


def test_a_worker_reads_the_files_of_its_own_rows_alone(tmp_path: Path) -> None:
    names = [str(tmp_path / f"{i}") for i in range(8)]
    for i in (0, 1, 4, 5):  # what worker 0 of 2 trains on, in batches of 4
        Path(names[i]).write_text(f"{i}")
    dataset = tf.data.Dataset.from_tensor_slices(names).map(tf.io.read_file).batch(4)
    own = [parts[0].numpy().tolist() for parts, *_ in shard_dataset(dataset, Placement(2, 0, 1))]
    assert own == [[b"0", b"1"], [b"4", b"5"]]


def test_a_cache_in_memory_is_kept_from_one_fit_to_the_next(tmp_path: Path) -> None:
    name = tmp_path / "row"
    name.write_text("read")
    names = tf.data.Dataset.from_tensor_slices([str(name)] * 4)
    dataset = names.map(tf.io.read_file).cache().batch(4)
    place = Placement(2, 0, 1)
    first = [parts[0].numpy().tolist() for parts, *_ in shard_dataset(dataset, place)]
    name.unlink()
    again = [parts[0].numpy().tolist() for parts, *_ in shard_dataset(dataset, place)]
    assert first == again == [[b"read"] * 2]


def test_batches_of_another_size_have_a_cache_of_their_own() -> None:
    rows = tf.data.Dataset.range(8).map(lambda i: 2 * i).cache()
    found = [
        [parts[0].numpy().tolist() for parts, *_ in shard_dataset(each, Placement(2, 1, 1))]
        for each in (rows.batch(4), rows.batch(8))
    ]
    assert found == [[[4, 6], [12, 14]], [[8, 10, 12, 14]]]


def test_a_cache_in_a_file_is_apart_from_the_users_own(tmp_path: Path) -> None:
    dataset = tf.data.Dataset.range(4).map(lambda i: 2 * i).cache(str(tmp_path / "cache")).batch(4)
    whole = [list(map(int, batch)) for batch in dataset]
    own = [
        [parts[0].numpy().tolist() for parts, *_ in shard_dataset(dataset, Placement(2, rank, 1))]
        for rank in range(2)
    ]
    assert whole == [[0, 2, 4, 6]]
    assert own == [[[0, 2]], [[4, 6]]]


def test_one_worker_reads_a_pipeline_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[Any] = []
    monkeypatch.setattr(own_rows, "move_cut", lambda given: moved.append(given) or (None, []))
    dataset = pipelines.mapped()
    shard_dataset(dataset, Placement(1, 0, 2))
    assert moved == []
    shard_dataset(dataset, Placement(2, 0, 1))
    assert moved == [dataset]
