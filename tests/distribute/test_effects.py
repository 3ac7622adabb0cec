"""What replicas do beside computing runs in each replica's order, and none waits for another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.distribute.watched import mirrored
from tfaccel.errors import StrategyError

pytestmark = pytest.mark.child(devices=2)


class Notes:
    """Notes names and values while a graph runs, with the number of the replica."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, int]] = []

    def take(self, name: str, value: Any) -> None:
        inside = tf.distribute.has_strategy()
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group if inside else -1
        tf.py_function(lambda r, _: self.taken.append((name, int(r))), [replica, value], [])

    def of(self, replica: int) -> list[str]:
        return [name for name, number in self.taken if number == replica]


def summed(value: Any) -> Any:
    context: Any = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def twice(notes: Notes, x: Any) -> Any:
    """Two reductions; each follows from what was noted before it."""
    for turn in range(2):
        with tf.control_dependencies([x]):
            notes.take(f"begin {turn}", x)
        tf.debugging.assert_less(x, 1e6)
        x = summed(x)
        notes.take(f"end {turn}", x)
    return x


ONCE = ["begin 0", "end 0", "begin 1", "end 1"]


def test_replicas_with_two_collectives_do_not_wait_for_each_others_assertions() -> None:
    strategy = mirrored()

    @tf.function
    def step() -> Any:
        def replica() -> Any:
            x = tf.random.stateless_uniform([3], [1, 2])
            for _ in range(2):
                with tf.control_dependencies([tf.debugging.assert_less(x, 1e6)]):
                    x = summed(tf.identity(x))
            return x

        return strategy.run(replica)

    want = 4 * tf.random.stateless_uniform([3], [1, 2]).numpy()
    for value in strategy.experimental_local_results(step()):
        np.testing.assert_allclose(value, want, rtol=1e-6)


def test_the_order_of_the_program_is_kept() -> None:
    strategy, notes = mirrored(), Notes()

    @tf.function
    def steps(x: Any) -> Any:
        notes.take("before", x)
        for _ in range(2):
            x = strategy.run(twice, (notes, tf.reduce_sum(strategy.experimental_local_results(x))))
        notes.take("after", 0.0)
        return strategy.experimental_local_results(x)[0]

    assert float(steps(1.0)) == 4.0 * 8.0
    assert notes.of(0) == notes.of(1) == ONCE * 2
    outside = [(i, name) for i, (name, replica) in enumerate(notes.taken) if replica == -1]
    assert outside == [(0, "before"), (len(notes.taken) - 1, "after")]
    assert {name for name, _ in notes.taken[1:9]} == {name for name, _ in notes.taken[9:17]}


def test_a_function_that_is_run_in_replicas() -> None:
    strategy, notes, traces = mirrored(), Notes(), []

    @tf.function
    def step(x: Any) -> Any:
        traces.append(1)
        x = twice(notes, x)
        if x > 0.0:  # AutoGraph makes a branch of it
            x = -x
        return x

    for _ in range(2):
        got = strategy.experimental_local_results(strategy.run(step, (tf.constant(1.0),)))
        assert [float(v) for v in got] == [-4.0, -4.0]
    assert len(traces) == 2, "not traced once for each replica"
    assert notes.of(0) == notes.of(1) == ONCE * 2


def test_an_assertion_of_a_replica_still_fails() -> None:
    strategy = mirrored()

    @tf.function
    def step(x: Any) -> Any:
        def replica(x: Any) -> Any:
            tf.debugging.assert_less(x, 2.0, message="too much")
            return summed(x)

        return strategy.run(replica, (x,))

    step(tf.constant(1.0))
    with pytest.raises(tf.errors.InvalidArgumentError, match="too much"):
        step(tf.constant(3.0))


def test_a_generator_that_replicas_share_before_and_after_they_reduce_is_refused() -> None:
    strategy, shared = mirrored(), tf.random.Generator.from_seed(1)
    with strategy.scope():
        own = tf.random.Generator.from_seed(1)

    def drawn(generator: Any, turns: int) -> Any:
        @tf.function(autograph=False)
        def step() -> Any:
            def replica() -> Any:
                x = tf.zeros([3])
                for _ in range(turns):
                    with tf.control_dependencies([x]):
                        x = summed(x + generator.normal([3]))
                return x

            return strategy.experimental_local_results(strategy.run(replica))

        return step()

    with pytest.raises(StrategyError, match=r"shared?, before and after they reduce.*Generator"):
        drawn(shared, 2)
    for generator, turns in ((shared, 1), (own, 2)):
        first, second = drawn(generator, turns)
        np.testing.assert_allclose(first, second)
