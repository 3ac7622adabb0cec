"""How far rounding moves a step is told from float64, and what is farther is found."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfaccel.distribute.differences import differences
from tfaccel.distribute.rounding import backward_error, beyond_rounding, moved_at_random
from tfaccel.distribute.step_result import StepResult


def of(loss: float, momentum: float) -> StepResult:
    slot = np.zeros(1), np.array([momentum])
    return StepResult(logs={"loss": np.array(loss)}, slots={"adam/kernel_momentum": slot})


EXACT = of(1.0, 1.0)


def beyond(result: StepResult, reference: StepResult, *others: StepResult) -> list[str]:
    found = beyond_rounding(result, reference, EXACT, iter(others), 2e-3)
    return [one.kind for one in found]


def test_what_is_nearer_than_three_times_one_devices_rounding_is_rounding() -> None:
    assert beyond(of(1.0, 1.25), of(1.0, 1.1)) == []
    assert beyond(of(1.0, 1.35), of(1.0, 1.1)) == ["slots"]
    # One device's own is within the tolerance, and three times as much is not.
    assert beyond(of(1.0, 1.02), of(1.0, 1.009)) == []


def test_what_moved_numbers_do_not_do_is_found() -> None:
    assert beyond(of(1.0, 1.5), of(1.0, 1.0), of(1.0, 0.9), of(1.0, 0.4)) == []
    assert beyond(of(1.0, 1.601), of(1.0, 1.0), of(1.0, 0.4)) == []
    assert beyond(of(1.0, 1.61), of(1.0, 1.0), of(1.0, 0.4)) == ["slots"]
    assert beyond(of(1.0, 2.0), of(1.0, 1.0), of(1.0, 0.9), of(1.0, 0.4)) == ["slots"]
    assert beyond(of(1.5, 1.5), of(1.0, 1.0), of(1.0, 0.4)) == ["logs"]


def test_no_more_are_taken_than_it_needs() -> None:
    others = iter([of(1.0, 0.4), of(1.0, 0.9)])
    assert not beyond_rounding(of(1.0, 1.5), of(1.0, 1.0), EXACT, others, 2e-3)
    assert len(list(others)) == 1


def test_numbers_are_moved_as_far_as_they_are_told_and_integers_stay() -> None:
    value = tf.constant([0.0, 1.0, -3.0, 0.3, -0.7] * 20, tf.float64)
    moved = moved_at_random(1e-6, seed=1)(value)
    apart = np.reshape((moved - value) / tf.maximum(tf.abs(value), 0.1), (20, 5))
    np.testing.assert_array_equal(apart[:, :3], 0)
    np.testing.assert_allclose(np.abs(apart[:, 3:]), 1e-6, rtol=1e-6)
    assert len(np.unique(np.sign(apart[:, 3:]))) == 2
    np.testing.assert_array_equal(moved, moved_at_random(1e-6, seed=1)(value))
    assert not np.array_equal(moved, moved_at_random(1e-6, seed=2)(value))


def test_more_terms_of_a_sum_round_more() -> None:
    with tf.Graph().as_default() as graph:
        images = tf.compat.v1.placeholder(tf.float32, [None, 8, 8, 3])
        tf.reduce_mean(images, axis=(0, 1, 2))
    assert backward_error(graph, rows=4) == 16 * 2.0**-24
    assert backward_error(graph, rows=64) == 64 * 2.0**-24


def test_the_mean_of_what_was_normalised_before_is_zero_up_to_rounding() -> None:
    def after(mean: float) -> StepResult:
        before = np.zeros(4), np.ones(4)
        now = np.full(4, mean), np.ones(4)
        names = "bn/moving_mean", "bn/moving_variance"
        return StepResult(state=dict(zip(names, zip(before, now, strict=True), strict=True)))

    assert differences(after(5e-9), after(-5e-9), 1e-3) == []
    (found,) = differences(after(1e-6), after(-5e-9), 1e-3)
    assert "'bn/moving_mean'" in found.what
