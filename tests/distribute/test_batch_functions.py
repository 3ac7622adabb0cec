"""Which functions of a batch give each row what it gets alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfaccel.distribute import _private
from tfaccel.distribute.batch_functions import why_not_by_row

ROWS, LESS = 6, 4
TABLE = tf.reshape(tf.range(30.0), [10, 3])


def of_images(x: Any) -> Any:
    x = tf.image.resize(tf.cast(x[..., tf.newaxis], tf.float32) / 255.0, [5, 7])
    x = tf.image.per_image_standardization(tf.tile(x, [1, 1, 1, 3]))
    return tf.transpose(tf.pad(x, [[0, 0], [1, 1], [2, 2], [0, 0]]), [0, 3, 1, 2])


def of_layers() -> Callable[[Any], Any]:
    rescaling = keras.layers.Rescaling(1 / 127.5, offset=-1)
    normalization = keras.layers.Normalization(axis=None, mean=3.0, variance=2.0)
    flatten = keras.layers.Flatten()
    return lambda x: flatten(normalization(rescaling(x)))


BY_ROW: dict[str, Callable[[Any], Any]] = {
    "images": of_images,
    "layers": of_layers(),
    "one_hot": lambda x: tf.one_hot(x[:, 0, 0] % 10, 10),
    "windows": lambda x: (x[:, :-1], tf.stack([x[:, 1:, 0], x[:, 1:, 1]], axis=-1)),
    "a table": lambda x: tf.gather(TABLE, x[:, 0] % 10) + tf.constant([1.0, 2.0, 3.0]),
    "reductions": lambda x: tf.concat([tf.reduce_sum(x, 1), tf.reduce_max(x, [2, 1])[:, None]], 1),
    "reshaped": lambda x: tf.reshape(x, [tf.shape(x)[0], 12]) * tf.ones_like(x[:, :1, 0]),
    "a dictionary": lambda x: {"x": tf.where(x > 5, x, 0), "y": tf.squeeze(x[:, :1], [1])},
    "split": lambda x: tf.split(x, 2, axis=1)[1],
    "strings": lambda x: tf.strings.lower(tf.strings.as_string(x[:, 0])),
    "a function": tf.function(lambda x: tf.reverse(x, [1]) - tf.cumsum(x, 1)),
}
TOGETHER: dict[str, tuple[Callable[[Any], Any], str]] = {
    "mean": (lambda x: x - tf.reduce_mean(x, 0), "Mean in it"),
    "reversed": (lambda x: x[::-1], "StridedSlice in it"),
    "the first row": (lambda x: x - x[0], "StridedSlice in it"),
    "sorted": (lambda x: tf.gather(x, tf.argsort(x[:, 0, 0])), "in it"),
    "mixed": (lambda x: x + tf.roll(x, 1, 0), "Roll in it"),
    "rows as columns": (lambda x: x[:, 0, 0] + x[:, 0, :1], "AddV2 in it"),
    "folded": (lambda x: tf.reshape(x, [-1, 6]), "Reshape in it"),
    "of the number of rows": (lambda x: x * tf.shape(x)[0], "Mul in it"),
    "numbered": (lambda x: tf.range(tf.shape(x)[0]), "not all that it gives"),
    "random": (lambda x: x + tf.random.uniform([], 0, 9, tf.int32), "it draws random numbers"),
    "seeded by the batch": (
        lambda x: tf.cast(x, tf.float32) + tf.random.stateless_uniform(tf.shape(x), [1, 2]),
        "AddV2 in it",
    ),
    "the same for all": (lambda x: tf.ones([6, 2]), "a fixed number of rows"),
    "a product": (lambda x: tf.matmul(tf.cast(x[:, 0], tf.float32), TABLE[:3]), "MatMul in it"),
}


def rows() -> Any:
    return np.arange(ROWS * 12, dtype=np.int32).reshape(ROWS, 4, 3) * 7 % 50


def function_of(made: Any) -> tuple[_private.MapFunction, Any]:
    found = _private.stage(made)
    assert found.function is not None
    return found.function, found.inputs[0].element_spec


@pytest.mark.parametrize("name", BY_ROW)
def test_a_function_that_goes_row_by_row_gives_fewer_rows_the_same(name: str) -> None:
    batches = tf.data.Dataset.from_tensor_slices(rows()).batch(ROWS)
    function, given = function_of(batches.map(BY_ROW[name]))
    assert why_not_by_row(function, given) == ""
    whole, some = function.call(tf.constant(rows())), function.call(tf.constant(rows()[LESS:]))
    for one, other in zip(tf.nest.flatten(whole), tf.nest.flatten(some), strict=True):
        np.testing.assert_array_equal(one[LESS:], other)


@pytest.mark.parametrize("name", TOGETHER)
def test_what_takes_rows_together_is_told(name: str) -> None:
    make, why = TOGETHER[name]
    batches = tf.data.Dataset.from_tensor_slices(rows()).batch(ROWS)
    assert why in why_not_by_row(*function_of(batches.map(make)))


def test_a_fixed_number_of_rows_is_told() -> None:
    batches = tf.data.Dataset.from_tensor_slices(rows()).batch(ROWS, drop_remainder=True)
    why = why_not_by_row(*function_of(batches.map(lambda x: x / 2)))
    assert why.startswith("its batches have a fixed number of rows")
