"""Which losses are found to be of each row, and which of the batch."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conformance.models import hard_triplets
from tfaccel.distribute.eager_probe import probe
from tfaccel.distribute.per_example import is_per_example

losses = keras.losses


def specs(*true: Any, pred: Any = (None, 4)) -> Any:
    """Tensors of these shapes as a step that is traced would have them."""
    with tf.Graph().as_default():
        y_true = tf.compat.v1.placeholder(tf.float32, true or pred)
        return y_true, tf.compat.v1.placeholder(tf.float32, pred)


def as_loss(function: Any) -> keras.losses.Loss:
    class Own(keras.losses.Loss):
        def call(self, y_true: Any, y_pred: Any) -> Any:
            return function(y_true, y_pred)

    return Own()


def squares(y: Any, p: Any) -> Any:
    return tf.reduce_mean(tf.square(y - p), axis=-1)


def huber_of_logits(y: Any, p: Any) -> Any:
    return keras.losses.binary_crossentropy(y, p, from_logits=True) + squares(y, p)


def sparse(y: Any, p: Any) -> Any:
    return keras.losses.sparse_categorical_crossentropy(y, p, from_logits=True)


def focal(y: Any, p: Any) -> Any:
    hit = tf.reduce_sum(y * p, axis=-1)
    return -tf.square(1 - hit) * tf.math.log(hit + 1e-6)


def contrast(y: Any, p: Any) -> Any:
    return tf.nn.softmax_cross_entropy_with_logits(
        tf.eye(tf.shape(p)[0]), tf.matmul(p, p, transpose_b=True)
    )


def balanced(y: Any, p: Any) -> Any:
    """Weighs classes by how often they come in the batch."""
    often = tf.reduce_mean(y, axis=0)
    return tf.reduce_sum(tf.square(y - p) / (often + 0.1), axis=-1)


def per_batch_size(y: Any, p: Any) -> Any:
    return squares(y, p) / tf.cast(tf.shape(y)[0], tf.float32)


def of_columns(y: Any, p: Any) -> Any:
    return tf.reduce_mean(tf.square(y - p), axis=0)


def first_rows_count_more(y: Any, p: Any) -> Any:
    return squares(y, p) / tf.cast(tf.range(tf.shape(y)[0]) + 1, tf.float32)


def one_number(y: Any, p: Any) -> Any:
    return tf.sqrt(tf.reduce_mean(squares(y, p)))


@pytest.mark.parametrize("function", [squares, huber_of_logits, focal])
def test_a_users_loss_of_each_row_is_one(function: Any) -> None:
    assert is_per_example(as_loss(function), *specs())


def test_labels_of_classes_are_tried_too() -> None:
    assert is_per_example(as_loss(sparse), *specs(None, 1))
    assert not is_per_example(as_loss(hard_triplets), *specs(None, 1))


@pytest.mark.parametrize(
    "function",
    [contrast, balanced, per_batch_size, of_columns, first_rows_count_more, one_number],
)
def test_a_users_loss_that_compares_rows_is_not(function: Any) -> None:
    assert not is_per_example(as_loss(function), *specs())


@pytest.mark.parametrize(
    ("loss", "each"),
    [
        (losses.MeanSquaredError, True),
        (losses.CategoricalCrossentropy, True),
        (losses.Dice, False),
        (losses.Tversky, False),
        (lambda: losses.Dice(axis=(1,)), True),
        (lambda: losses.Dice(axis=(0,)), False),
        (lambda: losses.CategoricalCrossentropy(axis=-1), True),
        (lambda: losses.CosineSimilarity(axis=0), False),
    ],
)
def test_keras_s_own(loss: Any, each: bool) -> None:
    assert is_per_example(loss(), *specs()) == each


def test_keras_s_circle_compares_rows() -> None:
    assert not is_per_example(losses.Circle(), *specs(None))


def test_a_mean_over_the_last_axis_is_one_number_where_that_is_the_rows() -> None:
    assert not is_per_example(losses.MeanSquaredError(), *specs(None, pred=(None,)))


def test_a_class_that_is_called_otherwise_is_not() -> None:
    class Own(keras.losses.Loss):
        def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
            return tf.reduce_mean(squares(y_true, y_pred))

    assert not is_per_example(Own(), *specs())


def test_what_cannot_be_tried_is_taken_for_the_batch() -> None:
    def fails(y: Any, p: Any) -> Any:
        raise RuntimeError

    counter = tf.Variable(0)

    def counts(y: Any, p: Any) -> Any:
        counter.assign_add(1)
        return squares(y, p)

    assert not is_per_example(as_loss(fails), *specs())
    assert not is_per_example(as_loss(counts), *specs())
    assert int(counter.numpy()) == 0  # a trial leaves nothing behind


def test_large_outputs_are_tried_small() -> None:
    seen: list[Any] = []

    def watched(y: Any, p: Any) -> Any:
        seen.append(p.shape.as_list())
        return squares(y, p)

    assert is_per_example(as_loss(watched), *specs(pred=(None, 512, 512, 3)))
    assert seen == [[None, 4, 4, 3]]


def test_a_nest_of_outputs_is_tried() -> None:
    (a, b), (c, d) = specs(), specs()
    assert is_per_example(as_loss(lambda y, p: squares(y["a"], p["a"])), {"a": a}, {"a": b})
    both = as_loss(lambda y, p: squares(y["a"], p["a"]) + tf.reduce_mean(p["b"]))
    assert not is_per_example(both, {"a": a, "b": c}, {"a": b, "b": d})


def test_a_trial_has_no_strategy_and_no_graph() -> None:
    with tf.Graph().as_default(), tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        found = probe(lambda: (tf.executing_eagerly(), tf.distribute.has_strategy()))
        assert found.value == (True, False)
    assert isinstance(probe(lambda: np.zeros(2)[5]).error, IndexError)
