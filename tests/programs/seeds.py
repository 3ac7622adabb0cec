"""Kind 7: seeds of single operations."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import layers

from tests.programs.data import labels, reals, weights
from tests.programs.program import Numbers, program


@program(7, always=True)
def shuffled_with_a_seed(strategy: Any) -> Numbers:
    """A dataset with shuffle(seed=3), in another order each epoch"""
    x, y = reals(27, 4), reals(27, 1, seed=2)
    with strategy.scope():
        model = keras.Sequential([keras.Input((4,)), layers.Dense(5, "tanh"), layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.3), "mse")
    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(1000, seed=3).batch(8).prefetch(2)
    run = model.fit(data, epochs=3, verbose=0)
    return {"history": run.history, "weights": weights(model)}


@program(7)
def sampled_from_two_sources(strategy: Any) -> Numbers:
    """Two sources mixed by sample_from_datasets(seed=5), one of them shuffled with a seed"""
    rare = tf.data.Dataset.from_tensor_slices((reals(12, 4), labels(2, 12)))
    common = tf.data.Dataset.from_tensor_slices((reals(30, 4, seed=5), labels(2, 30, seed=6)))
    mixed = tf.data.Dataset.sample_from_datasets(
        [rare.shuffle(12, seed=1).repeat(), common.repeat()], weights=[0.4, 0.6], seed=5
    )
    with strategy.scope():
        model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.3), loss, metrics=["accuracy"])
    run = model.fit(mixed.batch(8), steps_per_epoch=3, epochs=2, verbose=0)
    return {"history": run.history, "weights": weights(model)}
