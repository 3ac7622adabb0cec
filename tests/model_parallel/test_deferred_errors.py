"""A step that fails on the mesh is heard of."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

pytestmark = [pytest.mark.slow, pytest.mark.child(devices=4, group="outcome")]


class OnlyFinite(keras.layers.Identity):
    def call(self, x: Any) -> Any:
        return tf.debugging.check_numerics(x, "features")


def test_fit_raises_even_if_its_logs_are_not_read() -> None:
    import tfaccel

    ours = tfaccel.strategy("model_parallel", mesh="batch=2,model=2", device_type="cpu")
    with ours.scope():
        model = keras.Sequential([keras.Input((4,)), OnlyFinite(), keras.layers.Dense(2)])
        model.compile("sgd", "mse")
    x, y = np.ones((8, 4), "float32"), np.ones((8, 2), "float32")
    model.fit(x, y, batch_size=4, verbose=0)
    x[7] = np.nan  # of the last step
    with pytest.raises(tf.errors.InvalidArgumentError, match="features"):
        model.fit(x, y, batch_size=4, shuffle=False, verbose=0)
