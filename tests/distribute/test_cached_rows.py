"""A cache holds a worker's own rows, each computed once, wherever in the pipeline it is."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.distribute.test_own_rows import assert_same, gathered
from tfaccel.distribute import own_rows, row_functions
from tfaccel.distribute._private import TFDatasetAdapter
from tfaccel.distribute.batch_sharding import Placement
from tfaccel.distribute.dataset_sharding import shard_dataset

ROWS, SIZE = 24, 6
FIRST, SECOND = Placement(2, 0, 1), Placement(2, 1, 1)
rows = tf.data.Dataset.range


class Decode:
    """A function of a row that notes for which it was called."""

    def __init__(self) -> None:
        self.called: list[int] = []

    def __call__(self, i: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(tf.numpy_function(self._noted, [i], tf.int64), [])

    def _noted(self, i: Any) -> Any:
        self.called.append(int(i))
        return i


@pytest.fixture
def decode(monkeypatch: pytest.MonkeyPatch) -> Decode:
    """One that counts as a function of its row alone, although it calls Python."""
    monkeypatch.setattr(row_functions, "_PYTHON", ())
    monkeypatch.setattr(row_functions, "_ROW_BY_ROW", row_functions._ROW_BY_ROW | {"PyFunc"})
    return Decode()


def augment(i: tf.Tensor) -> tf.Tensor:
    return i + tf.cast(tf.random.stateless_uniform([], [i, 1], maxval=1, dtype=tf.int32), tf.int64)


ONCE: dict[str, Callable[[Any], Any]] = {
    "at batch": lambda f: rows(ROWS).map(f).cache().batch(SIZE),
    "in the middle": lambda f: rows(ROWS).map(f).cache().map(augment).batch(SIZE),
    "in any order": lambda f: (
        rows(ROWS).map(f, tf.data.AUTOTUNE, deterministic=False).cache().map(augment).batch(SIZE)
    ),
    "twice": lambda f: rows(ROWS).map(f).cache().map(augment).cache().map(augment).batch(SIZE),
    "last batch of fewer": lambda f: rows(ROWS - 3).map(f).cache().map(augment).batch(SIZE),
    "dropped remainder": lambda f: (
        rows(ROWS - 3).map(f).cache().map(augment).batch(SIZE, drop_remainder=True)
    ),
    "repeated": lambda f: rows(ROWS).map(f).cache().repeat(3).map(augment).batch(SIZE),
    "without end": lambda f: rows(ROWS).map(f).cache().map(augment).repeat().batch(SIZE).take(11),
    "batches repeated": lambda f: rows(ROWS).map(f).cache().map(augment).batch(SIZE).repeat(2),
    "some taken": lambda f: rows(ROWS).map(f).cache().skip(2).take(19).map(augment).batch(SIZE),
    "concatenated": lambda f: (
        rows(9).map(f).cache().concatenate(rows(9, ROWS).map(f)).map(augment).batch(SIZE)
    ),
    "counted": lambda f: (
        tf.data.Dataset.zip((rows(ROWS).map(f).cache(), rows(ROWS).repeat()))
        .map(lambda i, _: augment(i))
        .batch(SIZE)
    ),
}


def numbers(element: Any) -> list[int]:
    return [int(i) for i in element[0][0]]


@pytest.mark.parametrize(
    "place", [FIRST, pytest.param(SECOND, marks=pytest.mark.exhaustive)], ids=["first", "second"]
)
@pytest.mark.parametrize("name", ONCE)
def test_each_own_row_is_computed_once_in_all_passes(
    name: str, place: Placement, decode: Decode
) -> None:
    whole = [[int(i) for i in batch] for batch in ONCE[name](lambda i: i)]
    half = slice(0, 3) if place is FIRST else slice(3, 6)
    expected = [batch[half] for batch in whole]
    if len(whole[-1]) == 3:  # of which the first worker has two
        expected[-1] = whole[-1][:2] if place is FIRST else whole[-1][2:]
    sharded = shard_dataset(ONCE[name](decode), place)
    for _ in range(3):
        assert [numbers(element) for element in sharded] == expected
    assert sorted(decode.called) == sorted({i for batch in expected for i in batch})


def test_a_pass_that_is_left_does_not_fill_the_cache(decode: Decode) -> None:
    sharded = shard_dataset(rows(ROWS).map(decode).cache().map(augment).batch(SIZE), FIRST)
    assert numbers(next(iter(sharded))) == [0, 1, 2]
    found = [numbers(element) for element in sharded]
    assert found == [[i, i + 1, i + 2] for i in range(0, ROWS, SIZE)]


@pytest.mark.parametrize(
    "repeated",
    [
        lambda cached: cached.take(ROWS - 1).repeat(2),
        lambda cached: cached.repeat(2).skip(1),
        lambda cached: cached.filter(lambda i: i > 2).repeat(2),
    ],
    ids=["rows of two passes in a batch", "a row skipped", "of an unknown number"],
)
def test_all_rows_are_cached_where_own_rows_change_from_pass_to_pass(
    repeated: Callable[[Any], Any], decode: Decode
) -> None:
    def dataset(f: Any) -> Any:
        return repeated(rows(ROWS).map(f).cache()).map(augment).batch(SIZE)

    moved, (line,) = own_rows.move_cut(dataset(decode))
    assert moved is not None
    assert "map of Decode" in line
    expected = list(dataset(lambda i: i))
    made = dataset(decode)
    for _ in range(2):
        assert_same(gathered(made, 2, 1, "whole"), expected)


def test_pipelines_over_one_cache_do_not_mix_their_rows() -> None:
    cached = rows(ROWS).map(lambda i: 2 * i).cache()
    pipelines = [
        cached.batch(6),
        cached.map(augment).batch(8),
        cached.map(augment).batch(5, drop_remainder=True),
        cached.map(augment).batch(5),
        cached.take(12).map(augment).batch(6),
        cached.skip(12).map(augment).batch(6),
        cached.shard(2, 0).map(augment).batch(6),
        cached.shard(2, 1).map(augment).batch(6),
        *(
            tf.data.Dataset.zip((cached, others)).map(lambda i, j: i + j).batch(6)
            for others in (rows(ROWS), rows(ROWS, 0, -1))
        ),
    ]
    for each in pipelines:
        expected = [batch[: (len(batch) + 1) // 2].tolist() for batch in each.as_numpy_iterator()]
        assert [numbers(element) for element in shard_dataset(each, FIRST)] == expected


def test_rows_packed_for_a_map_and_for_a_batch_are_cached_apart() -> None:
    free = tf.TensorSpec([None], tf.int64)
    cached = rows(ROWS).map(lambda i: tf.repeat(i, tf.cast(i - i + 2, tf.int32))).cache()
    assert cached.element_spec.is_compatible_with(free)
    for each in (cached.batch(6), cached.map(tf.reduce_sum).batch(6)):
        assert_same(gathered(each, 2, 1, "whole"), each)


def test_caches_live_as_long_as_the_users() -> None:
    cached = rows(ROWS).map(lambda i: 2 * i).cache()
    made = cached.map(augment).batch(SIZE)
    sharded = shard_dataset(made, FIRST)
    assert len(list(sharded)) == 4
    gone = weakref.ref(cached)
    del cached, made, sharded
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
def test_a_new_pipeline_over_a_cache_computes_nothing_again(times: int, decode: Decode) -> None:
    cached = rows(ROWS).map(decode).cache()
    if times == 2:
        cached = cached.map(augment).cache()
    for _ in range(2):
        list(shard_dataset(cached.map(augment).batch(SIZE), FIRST))
    assert len(decode.called) == ROWS // 2


def test_caches_in_files_are_apart(tmp_path: Path, decode: Decode) -> None:
    """From each other, from those of other rows and workers, and from the user's own."""

    def dataset(f: Any, taken: int = ROWS) -> Any:
        cached = rows(ROWS).map(f).cache(str(tmp_path / "rows"))
        return cached.take(taken).map(augment).cache(str(tmp_path / f"more{taken}")).batch(SIZE)

    for _ in range(2):  # the second time from the files
        for taken in (ROWS, 12):
            expected = [np.arange(i, i + SIZE) for i in range(0, taken, SIZE)]
            assert_same(gathered(dataset(decode, taken), 2, 1, "whole"), expected)
    assert sorted(decode.called) == sorted([*range(ROWS), *range(12)])
    assert_same(dataset(lambda i: i), [np.arange(i, i + SIZE) for i in range(0, ROWS, SIZE)])


def test_a_cache_in_a_file_is_not_of_a_zip(tmp_path: Path, decode: Decode) -> None:
    cached = rows(ROWS).map(decode).cache(str(tmp_path / "rows"))
    moved, (line,) = own_rows.move_cut(cached.enumerate().map(lambda n, i: n + i).batch(SIZE))
    assert moved is not None
    assert line.endswith("cache comes after it, in a file, then zip")


def test_weights_of_classes_are_not_kept_in_a_cache(decode: Decode) -> None:
    batches = rows(ROWS).map(lambda i: (decode(i), i % 3)).batch(SIZE).cache()
    for weight in (2.0, 0.5):
        weighted = TFDatasetAdapter(batches, class_weight={0: weight, 2: 1.0}).get_tf_dataset()
        found = [own[0] for own, *_ in shard_dataset(weighted, FIRST)]
        assert [[int(i) for i in x] for x, *_ in found] == [
            [i, i + 1, i + 2] for i in range(0, ROWS, SIZE)
        ]
        for _, classes, weights in found:
            np.testing.assert_array_equal(weights, np.where(classes == 0, weight, 1.0))
    assert len(decode.called) == ROWS // 2
