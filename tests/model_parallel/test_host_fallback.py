"""Steps that a mesh does not divide, next to one device, and what is said of them."""

from __future__ import annotations

import logging
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.fallbacks import Fallbacks
from tests.model_parallel.test_training import X, Y, assert_as_one_device, dense, strategy
from tests.programs.table import PROGRAMS

pytestmark = [pytest.mark.slow, pytest.mark.child(devices=4, group="variable")]


def reasons(model: Any) -> dict[str, str]:
    return model._tfaccel_host_fallback.reasons  # type: ignore[no-any-return]


def test_eager_and_divided_steps_take_turns() -> None:
    """What an eager step has assigned lies on the mesh, for the steps of the mesh after it."""

    def train(scope: Any) -> Any:
        with scope():
            model = dense(run_eagerly=True, metrics=["accuracy"])
        first = model.fit(X, Y, verbose=0, shuffle=False)
        lasts = [model.evaluate(X, Y, verbose=0), model.predict(X[:5], verbose=0)]
        model.run_eagerly = False
        model.make_train_function(force=True)
        with scope():
            model.compile(keras.optimizers.Adam(0.01), model.loss)
        second = model.fit(X, Y, verbose=0, shuffle=False, validation_data=(X[:9], Y[:9]))
        return [first.history["loss"], lasts, second.history["loss"], second.history["val_loss"]]

    assert_as_one_device(train, rtol=1e-4)


def test_the_fallback_is_logged_once_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    with strategy().scope():
        model = dense(run_eagerly=True)
    with caplog.at_level(logging.WARNING, "absl"):
        model.fit(X, Y, epochs=2, verbose=0)
        model.evaluate(X, Y, verbose=0)
    said = [each.getMessage() for each in caplog.records if "not divided" in each.getMessage()]
    (line,) = said
    assert "since it runs eagerly (run_eagerly=True)" in line
    assert "\n" not in line


class Best(keras.layers.Layer):
    def call(self, x: Any) -> Any:
        best = tf.argmax(x, axis=0)
        chosen = tf.cast(tf.argmin(x, axis=1), x.dtype)[:, None] + tf.cast(best, x.dtype)
        return x + 0.01 * chosen


def test_an_operation_without_a_layout_leaves_the_rest_divided() -> None:
    made: list[Any] = []

    def train(scope: Any) -> Any:
        with scope():
            layers = [keras.layers.Dense(8, "tanh"), Best(), keras.layers.Dense(4)]
            model = keras.Sequential([keras.Input((12,)), *layers])
            model.compile(keras.optimizers.SGD(0.1), "mse")
        made.append(model)
        fitted = model.fit(X, np.eye(4)[Y], batch_size=8, verbose=0, shuffle=False)
        return [fitted.history["loss"], model.get_weights()]

    assert_as_one_device(train, rtol=1e-4)
    assert reasons(made[1]) == {}


def test_what_one_model_cannot_lay_out_another_can() -> None:
    """Whole operands of a transpose, as one model needs them, make another's reshape impossible.

    `last_row_through_convolutions`, run after this one, was not divided.
    """
    ours = strategy()
    with Fallbacks() as fallbacks:
        PROGRAMS["contrastive_views"].run(ours)
    assert fallbacks.said == []
    assert ours.replicated_operations == set()


def test_an_error_of_the_program_is_its_own() -> None:
    class Wrong(keras.layers.Layer):
        def call(self, x: Any, training: bool = False) -> Any:
            if training:
                raise TypeError("a mistake of the program")
            return x

    with strategy().scope():
        model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(4), Wrong()])
        model.compile("sgd", "mse")
    with pytest.raises(TypeError, match="a mistake of the program"):
        model.fit(X, np.eye(4)[Y], verbose=0)
    assert reasons(model) == {}


def test_a_function_of_texts_runs_on_the_host(caplog: pytest.LogCaptureFixture) -> None:
    """As a text is generated a character at a time, with the model called by a keyword."""
    rows = np.array(["on", "no", "oo"])

    def train(scope: Any) -> Any:
        with scope():
            lookup = keras.layers.StringLookup(vocabulary=["n", "o"])
            model = keras.Sequential(
                [keras.Input((2,)), keras.layers.Embedding(3, 4), keras.layers.Dense(3)]
            )
            model.compile(
                keras.optimizers.SGD(0.1),
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            )
        ids = np.array([[1, 2], [2, 1], [2, 2], [1, 1]])

        @tf.function
        def step(texts: Any) -> Any:
            letters = tf.reshape(tf.strings.bytes_split(texts).to_tensor(), (-1, 2))
            return model(inputs=lookup(letters))

        before = step(rows)
        model.fit(ids, ids, verbose=0, shuffle=False)
        return [np.asarray(before), np.asarray(step(rows)), np.asarray(model(inputs=ids))]

    with caplog.at_level(logging.WARNING, "absl"):
        assert_as_one_device(train, rtol=1e-4)
    said = [m for m in caplog.messages if "function step is not divided over the mesh" in m]
    assert len(said) == 1
    assert "since it is given strings" in said[0]
