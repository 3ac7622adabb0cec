"""A shuffle behind a cut gives own rows in the order that it gives one device, pass by pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tensorflow as tf

from tests.distribute.test_cached_rows import Decode, augment, decode  # noqa: F401
from tfaccel.distribute import dataset_consistency, own_rows
from tfaccel.distribute._private import datasets
from tfaccel.distribute.batch_sharding import Placement
from tfaccel.distribute.dataset_sharding import shard_dataset

ROWS, SIZE = 24, 6
FIRST, SECOND = Placement(2, 0, 1), Placement(2, 1, 1)
rows = tf.data.Dataset.range

SHUFFLED: dict[str, Callable[[Any], Any]] = {
    "batches": lambda f: rows(ROWS).map(f).batch(SIZE).cache().shuffle(3),
    "batches, seeded": lambda f: rows(ROWS).map(f).batch(SIZE).cache().shuffle(9, seed=3),
    "batches, repeated": lambda f: (
        rows(ROWS).map(f).batch(SIZE).cache().shuffle(4).prefetch(1).repeat(2).skip(1)
    ),
    "batches, twice": lambda f: rows(ROWS).map(f).cache().batch(SIZE).shuffle(2).shuffle(3).take(3),
    "batches, in any order": lambda f: (
        rows(ROWS).map(f, tf.data.AUTOTUNE, deterministic=False).batch(SIZE).cache().shuffle(4)
    ),
    "batches, without end": lambda f: (
        rows(ROWS).map(f).batch(SIZE).cache().repeat().shuffle(3).take(5)
    ),
}
ALWAYS = ("batches", "batches, repeated")


def passes(*datasets: Any) -> list[list[list[int]]]:
    """The numbers in each batch of a dataset, or in a worker's part of it."""
    return [
        [[int(i) for i in (batch[0][0] if isinstance(batch, tuple) else batch)] for batch in each]
        for each in datasets
    ]


def halves(batches: list[list[int]]) -> list[list[int]]:
    return [batch[: SIZE // 2] for batch in batches]


@pytest.mark.parametrize(
    "name",
    [
        name if name in ALWAYS else pytest.param(name, marks=pytest.mark.exhaustive)
        for name in SHUFFLED
    ],
)
def test_own_rows_have_the_order_of_one_device(
    name: str,
    decode: Decode,  # noqa: F811
) -> None:
    tf.random.set_seed(1)
    plain = SHUFFLED[name](lambda i: i)
    expected = passes(plain, plain, plain, plain)
    assert expected[0] != expected[1]
    tf.random.set_seed(1)
    made = SHUFFLED[name](decode)
    found = passes(shard_dataset(made, FIRST))
    called = decode.called.copy()
    # A pass of the user's own, and one of another fit, are passes as on one device.
    found += [*passes(made), *passes(*[shard_dataset(made, FIRST)] * 2)]
    own = [halves(expected[0]), expected[1], halves(expected[2]), halves(expected[3])]
    assert found == own
    assert not [i for i in called if i % SIZE >= SIZE // 2], "another worker's"


@pytest.mark.parametrize(
    "rows_of",
    [
        lambda f: rows(ROWS).map(f).shuffle(9),
        pytest.param(
            lambda f: rows(ROWS).map(f).shuffle(9).repeat(2), marks=pytest.mark.exhaustive
        ),
        pytest.param(
            lambda f: (
                tf.data.Dataset.zip((rows(ROWS).map(f).shuffle(9), rows(ROWS).shuffle(4)))
                .shuffle(5)
                .map(lambda i, _: i)
            ),
            marks=pytest.mark.exhaustive,
        ),
    ],
    ids=["once", "repeated", "zipped"],
)
def test_shuffled_rows_are_decoded_by_their_worker_alone(
    rows_of: Callable[[Any], Any],
    decode: Decode,  # noqa: F811
) -> None:
    tf.random.set_seed(1)
    plain = rows_of(lambda i: i).batch(SIZE)
    expected = passes(plain, plain)
    tf.random.set_seed(1)
    made = rows_of(decode).batch(SIZE)
    found = passes(*[shard_dataset(made, FIRST)] * 2)
    assert found == [halves(each) for each in expected]
    assert sorted(decode.called) == sorted(i for each in found for batch in each for i in batch)


@pytest.mark.parametrize(
    "made",
    [
        lambda: rows(ROWS).shuffle(4).map(augment).repeat(2).batch(SIZE),
        pytest.param(
            lambda: rows(ROWS).shuffle(4).map(augment).repeat().batch(SIZE).take(9),
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(
            lambda: rows(ROWS).map(augment).shuffle(3).prefetch(1).repeat(2).batch(SIZE),
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(
            lambda: rows(ROWS).shuffle(4).repeat(2).map(augment).batch(SIZE),
            marks=pytest.mark.exhaustive,
        ),
    ],
    ids=["a map between", "a map between, without end", "a prefetch between", "none between"],
)
def test_a_repeat_draws_as_many_orders_as_on_one_device(made: Callable[[], Any]) -> None:
    """`tf.data` draws one fewer for a shuffle with a repeat right after it."""
    tf.random.set_seed(1)
    plain = made()
    expected = passes(plain, plain, plain)
    tf.random.set_seed(1)
    sharded = shard_dataset(made(), FIRST)
    assert passes(sharded, sharded, sharded) == [halves(each) for each in expected]


def test_the_batch_that_comes_first_is_the_one_that_workers_compare() -> None:
    def first(seed: int, place: Placement, last: int = ROWS) -> list[int]:
        tf.random.set_seed(seed)
        made = rows(last).map(lambda i: 2 * i).batch(SIZE).cache().shuffle(4)
        sharded = shard_dataset(made, place, first=dataset_consistency.fingerprints)
        *_, fingerprint = next(iter(sharded))
        return [int(each) for each in fingerprint]

    assert first(1, FIRST) == first(1, SECOND) != []
    assert first(1, FIRST) != first(2, SECOND)


def test_pipelines_over_one_cache_keep_their_fingerprints_apart() -> None:
    cached = rows(ROWS).map(lambda i: 2 * i).batch(SIZE).cache()
    kept = shard_dataset(cached, FIRST, first=dataset_consistency.fingerprints)
    assert [len(element[-1]) for element in kept] == [1, 0, 0, 0]
    for moved in (cached.shuffle(4), cached.skip(1)):
        sharded = shard_dataset(moved, FIRST, first=dataset_consistency.fingerprints)
        assert {len(element[-1]) for element in sharded} == {1}


def test_an_order_that_is_not_known_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "_MOST_BYTES_COPIED", 100)
    large = tf.data.Dataset.from_tensor_slices(tf.range(100)).map(lambda i: 2 * i)
    for made in (large.shuffle(9).batch(SIZE), large.batch(SIZE).cache().shuffle(9)):
        moved, (line,) = own_rows.move_cut(made)
        assert moved is None
        assert line.endswith(
            "shuffle comes after it, whose order is not known, since it reads too much from "
            "memory; put it first"
        )
