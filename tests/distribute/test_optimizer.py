from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.distribute.watched import linear, mirrored
from tfaccel.distribute.optimizer import ReduceFirst, optimizers_of, reduce_first

pytestmark = pytest.mark.child(devices=3)


def moved_by(optimizer: Any, parts: list[list[float]], steps: int = 1) -> list[list[float]]:
    """Where each replica's variable ends, from zero, after gradients of these parts."""
    strategy = mirrored()
    with strategy.scope():
        made = optimizer()
        variable = keras.Variable(np.zeros(len(parts[0]), "float32"))
        made.build([variable])
    reduce_first(made, strategy)

    @tf.function
    def step() -> None:
        def replica() -> None:
            number = tf.distribute.get_replica_context().replica_id_in_sync_group
            made.apply([tf.gather(tf.constant(parts, tf.float32), number)], [variable])

        strategy.run(replica)

    for _ in range(steps):
        step()
    return [v.numpy().tolist() for v in strategy.experimental_local_results(variable.value)]


def everywhere(*values: float) -> Any:
    return [pytest.approx(list(values), rel=1e-5)] * 3


def sgd(**kwargs: Any) -> Any:
    return lambda: keras.optimizers.SGD(1.0, **kwargs)


def test_gradients_are_summed() -> None:
    assert moved_by(sgd(), [[1.0, 0], [2, 0], [4, 8]]) == everywhere(-7.0, -8.0)


@pytest.mark.parametrize("clip", ["clipnorm", "global_clipnorm"])
def test_the_norm_of_the_sum_is_clipped(clip: str) -> None:
    # The parts' norms are 5, 4 and 4; the sum is (3, 4), of norm 5.
    parts = [[3.0, 4], [4, 0], [-4, 0]]
    assert moved_by(sgd(**{clip: 1.0}), parts) == everywhere(-0.6, -0.8)
    assert moved_by(sgd(**{clip: 6.0}), parts) == everywhere(-3.0, -4.0)


def test_the_values_of_the_sum_are_clipped() -> None:
    assert moved_by(sgd(clipvalue=1.0), [[3.0, 0.5], [-3, 0.2], [0.5, 2]]) == everywhere(-0.5, -1)


def test_accumulated_gradients_are_applied_together() -> None:
    accumulating = sgd(gradient_accumulation_steps=2)
    parts = [[1.0], [2], [3]]
    assert moved_by(accumulating, parts, steps=1) == everywhere(0)
    assert moved_by(accumulating, parts, steps=2) == everywhere(-6.0)
    assert moved_by(accumulating, parts, steps=3) == everywhere(-6.0)


def scaled() -> Any:
    return keras.optimizers.LossScaleOptimizer(sgd(global_clipnorm=1.0)(), initial_scale=4.0)


def test_an_overflow_on_one_replica_is_skipped_by_all() -> None:
    assert moved_by(scaled, [[1.0], [float("inf")], [1]]) == everywhere(0)
    assert moved_by(scaled, [[4.0], [float("nan")], [4]]) == everywhere(0)
    assert moved_by(scaled, [[0.4], [0.4], [0.8]]) == everywhere(-0.4)
    assert moved_by(scaled, [[4.0], [4], [8]]) == everywhere(-1.0)


def test_sparse_gradients_are_summed() -> None:
    strategy = mirrored()
    with strategy.scope():
        optimizer = keras.optimizers.SGD(1.0)
        variable = keras.Variable(np.zeros((4, 1), "float32"))
        optimizer.build([variable])
    reduce_first(optimizer, strategy)

    @tf.function
    def step() -> None:
        def replica() -> None:
            number = tf.distribute.get_replica_context().replica_id_in_sync_group
            rows = tf.reshape(tf.cast(number, tf.int32), [1])
            gradient = tf.IndexedSlices(tf.ones((1, 1)), rows, tf.constant([4, 1]))
            optimizer.apply([gradient], [variable])

        strategy.run(replica)

    step()
    for value in strategy.experimental_local_results(variable.value):
        assert value.numpy().ravel().tolist() == [-1, -1, -1, 0]


def test_eagerly_too() -> None:
    tf.config.run_functions_eagerly(True)
    try:
        assert moved_by(sgd(clipnorm=1.0), [[3.0, 4], [4, 0], [-4, 0]]) == everywhere(-0.6, -0.8)
    finally:
        tf.config.run_functions_eagerly(False)


def test_outside_a_replica_an_adapted_optimizer_is_a_plain_one() -> None:
    optimizer = keras.optimizers.SGD(1.0, clipnorm=1.0)
    variable = keras.Variable([0.0, 0.0])
    reduce_first(optimizer, tf.distribute.get_strategy())
    optimizer.apply([tf.constant([3.0, 4.0])], [variable])
    np.testing.assert_allclose(variable, [-0.6, -0.8], rtol=1e-6)


def test_a_loss_scale_optimizer_is_adapted_with_the_one_inside() -> None:
    outer = scaled()
    reduce_first(outer, mirrored())
    assert isinstance(outer, ReduceFirst)
    assert isinstance(outer.inner_optimizer, ReduceFirst)


def test_optimizers_of_finds_all_that_a_model_holds() -> None:
    model = linear()
    first, second, third = (keras.optimizers.SGD() for _ in range(3))
    model.one, model.several, model.named = first, [second], {"a": third}
    held = [model.optimizer, first, second, third]
    assert {id(o) for o in optimizers_of(model)} == {id(o) for o in held}
