"""A `tf.function` of a script's own around a model on a mesh: what docs/model_parallel.md says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.model_parallel.test_training import X, dense, strategy

pytestmark = [pytest.mark.slow, pytest.mark.child(devices=4, group="variable")]


def test_tensorflow_refuses_to_call_it() -> None:
    with strategy().scope():
        model = dense()
    with pytest.raises(tf.errors.UnimplementedError, match=r"got a regular tensor .* DTensor"):
        tf.function(model)(tf.constant(X))


def test_the_ways_that_work() -> None:
    with strategy().scope():
        model = dense()
    want = model(X).numpy()
    found: list[Any] = [
        strategy().run(tf.function(model), args=(tf.constant(X),)),
        strategy().run(model, args=(tf.constant(X),)),
        model.predict(X, verbose=0),
    ]
    for got in found:
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_one_that_is_written_to_a_file_is_right(tmp_path: Path) -> None:
    with strategy().scope():
        model = dense()
    module = tf.Module()
    module.model = model
    module.serve = tf.function(lambda x: model(x), input_signature=[tf.TensorSpec([None, 12])])
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    np.testing.assert_allclose(loaded.serve(tf.constant(X)), model(X), rtol=1e-5, atol=1e-6)
