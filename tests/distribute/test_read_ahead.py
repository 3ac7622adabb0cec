"""Batches are read one ahead of the step that runs, on a mesh in a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tfaccel.distribute.read_ahead import read_ahead

BOTH = pytest.mark.parametrize("in_thread", [False, True])


def test_accelerators_get_a_batch_while_they_work_on_the_one_before() -> None:
    started: list[int] = []

    def source() -> Iterator[int]:
        for batch in range(4):
            started.append(batch)
            yield batch

    seen = [(batch, list(started)) for batch in read_ahead(source(), in_thread=False)]
    assert seen == [(0, [0]), (1, [0, 1, 2]), (2, [0, 1, 2, 3]), (3, [0, 1, 2, 3])]


def test_a_thread_takes_the_next_one_while_a_step_runs() -> None:
    third = threading.Event()

    def source() -> Iterator[int]:
        yield 1
        yield 2
        third.set()
        yield 3

    batches = read_ahead(source(), in_thread=True)
    assert next(batches) == 1
    assert not _threads(), "the batch that shows shapes has made it read another one"
    assert next(batches) == 2
    assert third.wait(10)
    assert list(batches) == [3]


@BOTH
def test_an_error_of_the_data_comes_where_its_batch_would(in_thread: bool) -> None:
    def source() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("a broken file")

    batches = read_ahead(source(), in_thread)
    assert [next(batches), next(batches)] == [1, 2]
    with pytest.raises(ValueError, match="a broken file"):
        next(batches)


@BOTH
def test_nothing_of_nothing(in_thread: bool) -> None:
    assert list(read_ahead(iter(()), in_thread)) == []


def test_no_thread_stays_when_a_pass_is_abandoned() -> None:
    batches = read_ahead(iter(range(5)), in_thread=True)
    next(batches)
    next(batches)
    (thread,) = _threads()
    batches.close()
    thread.join(10)
    assert not _threads()


def _threads() -> list[threading.Thread]:
    running = [t for t in threading.enumerate() if t.name.startswith("tfaccel-batches")]
    return [thread for thread in running if not thread.join(1) and thread.is_alive()]
