"""A function of a step that is timed, on a clock that only moves when it is told to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import tensorflow as tf

from tfaccel.distribute.replacements import replaced
from tfaccel.distribute.worker_activity import WorkerActivity, worker_activity
from tfaccel.monitoring import timed_step
from tfaccel.monitoring.split import split
from tfaccel.monitoring.timed_step import TimedStep


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Batches:
    """Batches that take two seconds each."""

    def __init__(self, clock: Clock, count: int = 9) -> None:
        self.clock, self.left = clock, count

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> int:
        if not self.left:
            raise StopIteration
        self.left -= 1
        self.clock.now += 2
        return self.left


def timed(clock: Clock, steps: int = 1) -> tuple[TimedStep, list[Any]]:
    """A step of three seconds, as Keras calls it."""
    seen: list[Any] = []

    def function(iterator: Any) -> str:
        for _, _ in zip(range(steps), iterator, strict=False):
            clock.now += 3
        return "logs"

    return TimedStep(function, steps, seen.append, clock), seen


def test_a_step_is_waiting_and_computing() -> None:
    clock = Clock()
    step, seen = timed(clock)
    batches = Batches(clock)
    assert step(batches) == "logs"
    clock.now += 1  # callbacks
    step(batches)
    parts = split(step.take())
    assert (parts.input_s, parts.step_s, parts.host_s) == (4, 6, 1)
    assert (step.steps_seen, seen) == (2, [8, 7])
    assert step.take() == []


def test_several_steps_of_a_call_are_told_apart() -> None:
    clock = Clock()
    step, _ = timed(clock, steps=3)
    step(Batches(clock))
    parts = split(step.take())
    assert (parts.input_s, parts.step_s, parts.host_s) == (6, 9, 0)
    assert step.steps_seen == 3


def test_data_that_end_within_a_call() -> None:
    clock = Clock()
    step, _ = timed(clock, steps=3)
    step(Batches(clock, count=2))
    assert step.steps_seen == 2
    assert split(step.take()).step_s == 6


def test_what_is_left_out_is_in_no_part() -> None:
    clock = Clock()
    step, _ = timed(clock)
    step(Batches(clock))
    clock.now += 10
    step.leave_out(8, 0.0)
    step(Batches(clock))
    assert split(step.take()).host_s == 2
    clock.now += 30  # validation
    assert step.begin() == 30
    step(Batches(clock))
    assert split(step.take()).host_s == 0


def test_results_that_come_later_belong_to_their_call() -> None:
    clock = Clock()
    step, _ = timed(clock)
    step.label = 4
    step(Batches(clock))  # ends at 5
    step.label = 5
    step(Batches(clock))  # ends at 10
    clock.now = 12
    step.done(4)
    clock.now = 16
    step.done(5)
    first, second = step.take()
    assert (first.done, second.done) == (12, 16)
    parts = split([first, second])
    assert (parts.input_s, parts.step_s, parts.seconds) == (2, 14, 16)


def test_collectives_are_told_from_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, activity = Clock(), WorkerActivity()
    monkeypatch.setattr(timed_step, "worker_activity", activity)
    step, _ = timed(clock)

    class Gathers(Batches):
        def __next__(self) -> int:
            activity.collective_s += 1.5
            return super().__next__()

    activity.collective_s += 0.5  # before the first step, in a callback
    clock.now += 0.5
    step(Gathers(clock))
    parts = split(step.take())
    assert (parts.input_s, parts.collective_s, parts.host_s) == (0.5, 2.0, 0.0)


def test_activity_counts_the_time_of_the_outermost_collective() -> None:
    activity = WorkerActivity()

    @activity.collective
    def inner() -> int:
        return 1

    @activity.collective
    def outer() -> int:
        assert activity.collective_s == 0
        return inner() + 1

    assert outer() == 2
    assert 0 < activity.collective_s < 1


def test_batches_of_a_dataset_are_taken_outside_of_the_graph() -> None:
    clock = Clock()
    step, seen = timed(clock)
    iterator = iter(tf.data.Dataset.range(2).batch(2))
    step(iterator)
    assert [batch.numpy().tolist() for batch in seen] == [[0, 1]]
    assert step.input_is_seen
    with pytest.raises(tf.errors.OutOfRangeError):
        step(iterator)
    assert step.steps_seen == 1


def test_batches_that_a_call_takes_by_itself_are_not_seen() -> None:
    clock = Clock()
    batches: list[Any] = []

    def function(iterator: Any) -> None:
        batches.append(iterator)
        clock.now += 5

    step = TimedStep(function, 4, batches.append, clock)
    iterator = iter(tf.data.Dataset.range(2))
    step(iterator)
    assert batches == [iterator]
    assert not step.input_is_seen
    assert step.steps_seen == 4
    assert split(step.take()).step_s == 5


def test_a_step_that_fails_has_ended() -> None:
    def fails(iterator: Any) -> None:
        next(iter(iterator))
        raise KeyError

    clock = Clock()
    step = TimedStep(fails, 1, lambda batch: None, clock)
    with pytest.raises(KeyError), replaced(worker_activity, "collective_s", 0.0):
        step(Batches(clock))
    assert split(step.take()).input_s == 2


def test_calls_of_a_fit_without_a_monitor_are_passed_on() -> None:
    """After a `fit` that failed, which left its clocks."""
    clock = Clock()
    step, seen = timed(clock)
    step.is_announced = False
    batches = Batches(clock)
    for announced in (True, False, False):
        step.is_announced = announced or step.is_announced
        assert step(batches) == "logs"
    assert (batches.left, seen) == (6, [8])
    assert step.steps_seen == len(step.take()) == 1
