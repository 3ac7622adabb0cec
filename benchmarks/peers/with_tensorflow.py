"""A worker under TensorFlow's own MultiWorkerMirroredStrategy, without tfaccel.

Keras 3's `fit` fails under it at its first step, so the loop is written by hand, as TensorFlow's
guide to distributed training does; the loss is not reduced between workers before the end.
"""

from __future__ import annotations

import time
from typing import Any

import keras
import tensorflow as tf

from peers import keras_models, work


def train(task: work.Task) -> dict[str, Any]:
    """Milliseconds per step of each timed epoch, and the loss of the last."""
    implementation = tf.distribute.experimental.CommunicationImplementation.RING
    options = tf.distribute.experimental.CommunicationOptions(implementation=implementation)
    strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    with strategy.scope():
        model = keras_models.build(task.model)
        optimizer = keras.optimizers.Adam(1e-3)
        optimizer.build(model.trainable_variables)
    per_row = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")

    def replica_step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = per_row(y, model(x, training=True)) / (task.workers * tf.size(y, tf.float32))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    @tf.function
    def step(x: Any, y: Any) -> Any:
        return strategy.run(replica_step, args=(x, y))

    data = strategy.distribute_datasets_from_function(lambda _: _own_batches(task))
    spent: list[float] = []
    for _ in range(task.epochs + 1):
        begun = time.perf_counter()
        losses = [step(x, y) for x, y in data]
        loss = float(strategy.reduce("SUM", tf.add_n(losses), axis=None)) / task.steps
        spent.append((time.perf_counter() - begun) / task.steps * 1e3)
    return {
        "ms": spent[1:],
        "loss": loss,
        "parameters": model.count_params(),
        "versions": {"keras": keras.__version__, "tensorflow": tf.__version__},
    }


def _own_batches(task: work.Task) -> tf.data.Dataset:
    """Of each global batch, the rows of this worker."""
    own = [a.reshape(task.steps, task.workers, task.batch, *a.shape[1:]) for a in work.data(task)]
    batches = tf.data.Dataset.from_tensor_slices(tuple(a[:, task.rank] for a in own))
    return batches.prefetch(tf.data.AUTOTUNE)
