"""A `tf.function` of a script's own around a model on a mesh: what docs/model_parallel.md says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.model_parallel.test_training import X, dense, strategy
from tfaccel.errors import InputError

pytestmark = [pytest.mark.slow, pytest.mark.child(devices=4, group="variable")]


def test_the_ways_that_work() -> None:
    with strategy().scope():
        model = dense()
    want = model(X).numpy()
    found: list[Any] = [
        tf.function(model)(tf.constant(X)),
        tf.function(lambda x: model(x))(X),
        strategy().run(tf.function(model), args=(tf.constant(X),)),
        strategy().run(model, args=(tf.constant(X),)),
        model.predict(X, verbose=0),
    ]
    for got in found:
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_an_eager_step_that_makes_tensors_of_its_own_is_refused() -> None:
    with strategy().scope():
        model = keras.Sequential([keras.Input((3, 12)), keras.layers.LSTM(4)])
    x = tf.reshape(tf.constant(X[:42]), (14, 3, 12))
    with pytest.raises(InputError, match=r"put the call of strategy\.run"):
        strategy().run(lambda x: model(x), args=(x,))
    got = tf.function(lambda x: strategy().run(model, args=(x,)))(x)
    np.testing.assert_allclose(got, model(x), rtol=1e-5, atol=1e-6)


def test_rows_gathered_by_hand_are_all_rows_and_have_a_gradient() -> None:
    def step(x: Any) -> Any:
        context = tf.distribute.get_replica_context()
        with tf.GradientTape() as tape:
            features = model(x)
            alike = tf.matmul(features, context.all_gather(features, axis=0), transpose_b=True)
            loss = tf.reduce_mean(tf.square(alike))
        return loss, tape.gradient(loss, model.trainable_variables)[0]

    with strategy().scope():
        model = dense()
    want = step(tf.constant(X[:8]))  # on the host
    got = tf.function(lambda x: strategy().run(step, args=(x,)))(X[:8])
    for one, other in zip(want, got, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-6)


def test_a_jacobian_and_a_function_of_another_host_tensor() -> None:
    with strategy().scope():
        model = dense()
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(model(X[:4]), axis=0)
    jacobian = tape.jacobian(total, model.trainable_variables[-1])
    np.testing.assert_allclose(jacobian, 4 * np.eye(4), rtol=1e-6)
    assert float(tf.function(lambda x: tf.reduce_sum(x))(tf.ones(3))) == 3.0


def test_one_that_is_written_to_a_file_is_right(tmp_path: Path) -> None:
    with strategy().scope():
        model = dense()
    module = tf.Module()
    module.model = model
    module.serve = tf.function(lambda x: model(x), input_signature=[tf.TensorSpec([None, 12])])
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    np.testing.assert_allclose(loaded.serve(tf.constant(X)), model(X), rtol=1e-5, atol=1e-6)
