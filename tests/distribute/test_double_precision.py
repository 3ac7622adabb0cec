"""A function in double precision gives what float64 would, and leaves its variables alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfaccel.distribute.double_precision import DoublePrecision

X = np.array([1e8, 1.0, -1e8, 1.0], "float32")


def double(function: Any, *arguments: Any) -> tuple[DoublePrecision, list[tf.Tensor]]:
    made = DoublePrecision(tf.function(function, autograph=False).get_concrete_function(*arguments))
    return made, made(arguments)


def test_it_sums_without_rounding() -> None:
    _, (total,) = double(lambda x: tf.foldl(lambda a, b: a + b, x), tf.constant(X))
    assert total.dtype == tf.float64
    assert float(total) == 2.0


def test_what_it_assigns_is_seen_and_does_not_last() -> None:
    held, counted = tf.Variable(X), tf.Variable(3)

    def step(x: Any) -> Any:
        counted.assign_add(1)
        held.assign_add(x / 3.0)
        return tf.reduce_sum(held), counted.read_value()

    made, (total, count) = double(step, tf.ones([4]))
    np.testing.assert_allclose(float(total), 2 + 4 / 3, rtol=1e-7)
    assert int(count) == 4
    wide = made.value_of(held)
    assert wide is not None
    np.testing.assert_allclose(wide, X.astype("float64") + 1 / 3, rtol=1e-15)
    np.testing.assert_array_equal(held.numpy(), X)
    assert int(counted.numpy()) == 3
    assert made.value_of(tf.Variable(1.0)) is None


@pytest.mark.parametrize("in_a_loop", [False, True])
def test_bits_of_numbers_are_read_as_they_were(in_a_loop: bool) -> None:
    """Keras's argmax reads the sign of zero so."""

    def bits(x: Any) -> Any:
        if not in_a_loop:
            return tf.bitcast(x, tf.int32)
        return tf.map_fn(lambda one: tf.bitcast(one, tf.int32), x, tf.int32)

    _, (found,) = double(bits, tf.constant([1.0, -0.0]))
    np.testing.assert_array_equal(found, np.array([1.0, -0.0], "float32").view("int32"))


def test_a_branch_and_a_gradient() -> None:
    def gradient(x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.cond(x[0] > 0.0, lambda: tf.reduce_sum(x**3 / 7.0), lambda: tf.reduce_sum(x))
        return tape.gradient(y, x)

    _, (found,) = double(gradient, tf.constant([2.0, 3.0]))
    np.testing.assert_allclose(found, [12 / 7, 27 / 7], rtol=1e-15)


def test_an_operation_without_float64_is_named() -> None:
    def resized(x: Any) -> Any:
        return tf.raw_ops.ResizeBilinear(images=x, size=[4, 4]) + 1.0

    with pytest.raises((ValueError, tf.errors.OpError)):
        double(resized, tf.ones([1, 2, 2, 1]))
    with pytest.raises(ValueError, match="0 arguments; expected 1"):
        double(lambda x: x + 1.0, tf.ones([1]))[0]([])
