"""Rows that a `tf.data` service computes are those that are computed here, in their order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfaccel.distribute import data_service
from tfaccel.distribute.batch_sharding import Placement
from tfaccel.distribute.batches import Batches
from tfaccel.distribute.dataset_sharding import shard_dataset

service = tf.data.experimental.service
NUMBERS = np.arange(60, dtype="float32").reshape(30, 2)


class Service:
    """A dispatcher and two workers in this process."""

    def __init__(self) -> None:
        kept = data_service.kept
        self.dispatcher = kept(service.DispatchServer(service.DispatcherConfig(port=0)))
        self.address = self.dispatcher.target.partition("://")[2]
        config = service.WorkerConfig(dispatcher_address=self.address, heartbeat_interval_ms=100)
        self.workers = [kept(service.WorkerServer(config)) for _ in range(2)]


@pytest.fixture(scope="module")
def two_workers() -> Service:
    return Service()


@pytest.fixture(autouse=True)
def all_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even what is cheaper to compute here."""
    monkeypatch.setattr(data_service, "PART_S", 0.0)
    monkeypatch.setattr(data_service, "BYTE_S", 0.0)


@pytest.fixture
def used(two_workers: Service) -> Iterator[Service]:
    data_service.use(two_workers.address)
    yield two_workers
    data_service.use("")


def doubled(row: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    return row * 2.0, tf.strings.as_string(tf.reduce_sum(row))


def shuffled() -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(NUMBERS).shuffle(30, seed=3)


PIPELINES: dict[str, Callable[[], tf.data.Dataset]] = {
    "shuffled, with a last batch of two": lambda: shuffled().map(doubled).batch(4),
    "dropped remainder": lambda: shuffled().map(doubled).batch(4, drop_remainder=True),
    "repeated, some taken": lambda: shuffled().map(doubled).batch(4).repeat().take(20),
    "cached": lambda: (
        tf.data.Dataset.from_tensor_slices(NUMBERS).map(doubled).cache().batch(4).repeat(2)
    ),
    "cached in the middle": lambda: (
        tf.data.Dataset.from_tensor_slices(NUMBERS)
        .map(lambda row: row[: tf.cast(row[0], tf.int32) % 3])
        .cache()
        .map(lambda row: doubled(tf.reshape(tf.pad(row, [[0, 2 - tf.size(row)]]), [2])))
        .batch(4)
        .repeat(2)
    ),
    "interleaved": lambda: (
        tf.data.Dataset.range(3)
        .interleave(lambda i: tf.data.Dataset.range(i * 10, i * 10 + 5))
        .map(lambda i: tf.cast(i, tf.float32)[None] / 3.0)
        .batch(4)
    ),
    "zipped": lambda: tf.data.Dataset.zip((shuffled().map(doubled), shuffled())).batch(5),
}


def test_epochs_are_shuffled_as_without_a_service(two_workers: Service) -> None:
    """Keras opens passes of which it reads nothing."""

    def orders() -> list[Any]:
        tf.random.set_seed(1)
        rows = tf.data.Dataset.range(12).shuffle(12, seed=3).map(lambda i: 2 * i).batch(4)
        batches = Batches(rows, Placement(2, 0, 1), ("CPU:0",))
        found: list[Any] = []
        for _ in range(3):
            iter(batches)  # an epoch ends
            found.append([int(v) for batch in iter(batches) for v in batch.values[0].data])
        return found

    expected = orders()
    data_service.use(two_workers.address)
    try:
        assert orders() == expected
    finally:
        data_service.use("")


def passes(dataset: tf.data.Dataset, number: int = 2) -> list[list[Any]]:
    return [[tf.nest.flatten(element) for element in dataset] for _ in range(number)]


def assert_same(found: Any, expected: Any) -> None:
    tf.nest.map_structure(np.testing.assert_array_equal, found, expected)


ALWAYS = ("shuffled, with a last batch of two", "cached in the middle")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ALWAYS else pytest.mark.exhaustive)
        for name in PIPELINES
    ],
)
def test_batches_are_the_same_row_by_row(name: str, two_workers: Service) -> None:
    """Of two passes, in each of two workers of two replicas."""
    for rank in range(2):
        placement = Placement(workers=2, rank=rank, local=2)
        tf.random.set_seed(1)
        expected = passes(shard_dataset(PIPELINES[name](), placement))
        data_service.use(two_workers.address)
        try:
            tf.random.set_seed(1)
            assert_same(passes(shard_dataset(PIPELINES[name](), placement)), expected)
        finally:
            data_service.use("")


def counted(cut: tf.data.Dataset) -> tuple[tf.data.Dataset, list[bool]]:
    """`cut` with its rows halved elsewhere, and of each part whether it was halved here instead."""
    here: list[bool] = []
    plain = data_service._Elsewhere.rows

    def rows(one: Any, *part: Any) -> Any:
        made = plain(one, *part)
        here.append(not made[0])
        return made

    data_service._Elsewhere.rows = rows  # type: ignore[method-assign]
    try:
        made = data_service.computed_elsewhere(cut, lambda part: part / 2.0)
        assert made is not None
        passed = list(made.as_numpy_iterator())
    finally:
        data_service._Elsewhere.rows = plain  # type: ignore[method-assign]
    assert_same([row for part, _ in passed for row in part], list(NUMBERS / 2.0))
    return made, here


def parts() -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(NUMBERS).batch(4).map(lambda x: (x, tf.shape(x)[0]))


def test_the_service_computes_them(used: Service) -> None:
    _, here = counted(parts())
    assert here == [False] * 8


def busy(part: Any) -> Any:
    def two() -> Any:
        until = time.process_time() + 0.1
        while time.process_time() < until:
            pass
        return np.float32(2)

    return part / tf.numpy_function(two, [], tf.float32)


@pytest.mark.parametrize(("compute", "sent"), [(lambda part: part / 2.0, 0), (busy, 8)])
def test_cheap_rows_are_computed_here(
    compute: Any, sent: int, used: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers: list[int] = []

    def through(parts: Any, specs: Any, compute: Any, address: str) -> Iterator[Any]:
        for number, *leaves in parts():
            numbers.append(number)
            yield compute(tf.constant(number, tf.int64), *leaves)

    monkeypatch.setattr(data_service, "_through_service", through)
    monkeypatch.setattr(data_service, "PART_S", 0.05)
    made = data_service.computed_elsewhere(parts(), compute)
    assert made is not None
    assert_same([row for part, _ in made.as_numpy_iterator() for row in part], list(NUMBERS / 2.0))
    assert numbers == [*range(sent)]


def test_passes_share_a_job_and_compute_nothing_that_is_not_read(
    used: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keras opens two passes an epoch, and a job takes long to start."""
    jobs: list[int] = []
    plain = data_service._through_service

    def through(parts: Any, *args: Any) -> Iterator[Any]:
        jobs.append(0)
        for result in plain(parts, *args):
            jobs[-1] += 1
            yield result

    monkeypatch.setattr(data_service, "_through_service", through)
    made = data_service.computed_elsewhere(parts(), lambda part: part / 2.0)
    assert made is not None
    for _ in range(3):
        iter(made)
        assert_same(np.concatenate([part for part, _ in made]), NUMBERS / 2.0)
    assert jobs == [3 * 8]


def test_a_pass_that_is_left_leaves_nothing_behind(used: Service) -> None:
    before = _receivers()  # of tests that have ended, which end when they are idle
    made = data_service.computed_elsewhere(parts().repeat(100), lambda part: part / 2.0)
    assert made is not None
    assert len(list(made.take(3))) == 3
    deadline = time.monotonic() + 120  # it ends when it is idle, and the service answers
    while (left := _receivers() - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def _receivers() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if t.name == "tfaccel data service"}


def test_what_needs_this_process_is_computed_here(used: Service) -> None:
    factor = tf.Variable(3.0)
    rows = tf.data.Dataset.from_tensor_slices(NUMBERS).map(lambda row: row * factor).batch(4)
    found = passes(shard_dataset(rows, Placement(workers=1, rank=0, local=1)), 1)[0]
    assert_same(np.concatenate([element[0] for element in found]), NUMBERS * 3.0)


def lossy(parts: Any, specs: Any, compute: Any, address: str) -> Iterator[Any]:
    """Stands for a service of which workers die: loses parts, reorders the rest, and fails."""
    held: list[Any] = []
    for number, *leaves in parts():
        if 10 <= number < 14 or number % 7 == 5:
            continue
        held.append(compute(tf.constant(number, tf.int64), *leaves))
        if len(held) == 3:
            yield from reversed(held)
            held = []
        if number > 60:
            raise tf.errors.UnavailableError(None, None, "nobody is left")


def test_workers_that_die_cost_time_and_no_rows(
    used: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a worker has taken with it is computed here; in the end all is."""
    monkeypatch.setattr(data_service, "_through_service", lossy)
    monkeypatch.setattr(data_service, "FIRST_S", 0.2)
    monkeypatch.setattr(data_service, "LEAST_S", 0.05)
    made = data_service.computed_elsewhere(parts().repeat(20), lambda part: part / 2.0)
    assert made is not None
    found = [part for part, _ in made.as_numpy_iterator()]
    assert_same(np.concatenate(found), np.tile(NUMBERS / 2.0, (20, 1)))


def test_an_error_of_the_data_is_raised_and_nothing_is_skipped(used: Service) -> None:
    faulty = parts().map(lambda x, n: (tf.debugging.check_numerics(x / (x - 8.0), "odd"), n))
    made = data_service.computed_elsewhere(faulty, lambda part: part / 2.0)
    assert made is not None
    found: list[Any] = []
    with pytest.raises(tf.errors.OpError, match="odd"):
        found.extend(made)
    assert len(found) == 1, "the batch before the one that has an 8"


def test_a_service_that_nobody_answers_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_service, "FIRST_S", 0.2)
    data_service.use("127.0.0.1:1")
    try:
        made = data_service.computed_elsewhere(parts(), lambda part: part / 2.0)
        assert made is not None
        found = [part for part, _ in made.as_numpy_iterator()]
    finally:
        data_service.use("")
    assert_same(np.concatenate(found), NUMBERS / 2.0)
