"""A worker that trains through `model.fit`: Keras alone, or under a strategy of tfaccel."""

from __future__ import annotations

import contextlib
from typing import Any

import keras
import tensorflow as tf
from epochs import StepTime
from keras import layers

import tfaccel
from peers import work
from tfaccel.errors import TfaccelError


def train(task: work.Task) -> dict[str, Any]:
    """Milliseconds a step of each timed epoch, and the loss of the last.

    An option that the strategy refuses is answered with why, as ``refused``.
    """
    try:
        scope = _scope(task)
    except TfaccelError as error:
        return {"refused": str(error)}
    with scope:
        model = _BUILD[task.model]()
        model.set_weights(work.weights(task.model))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(1e-3), loss)
    x, y = work.data(task)
    timer = StepTime(task.steps)
    fitted = model.fit(x, y, task.global_batch, task.epochs + 1, 0, [timer], shuffle=False)
    return {
        "ms": timer.ms,
        "loss": fitted.history["loss"][-1],
        "parameters": model.count_params(),
        "versions": {"keras": keras.__version__, "tensorflow": tf.__version__},
    }


def _scope(task: work.Task) -> Any:
    if task.library == "keras":
        return contextlib.nullcontext()
    options = {"wire": task.wire} if task.wire else {}
    return tfaccel.strategy(
        "multi_worker_mirrored", communication=task.communication, device_type="cpu", **options
    ).scope()


def _mlp() -> keras.Model:
    hidden = [layers.Dense(width, "relu") for width in work.MLP[1:-1]]
    return keras.Sequential([keras.Input((work.MLP[0],)), *hidden, layers.Dense(work.MLP[-1])])


def _cnn() -> keras.Model:
    model = keras.Sequential([keras.Input((work.IMAGE, work.IMAGE, 3))])
    for i, (_, channels) in enumerate(work.CONVOLUTIONS):
        model.add(layers.Conv2D(channels, 3, padding="same", activation="relu"))
        if i % 2:
            model.add(layers.MaxPooling2D())
    model.add(layers.Flatten())
    model.add(layers.Dense(work.CLASSES))
    return model


def _transformer() -> keras.Model:
    tokens = keras.Input((work.SEQUENCE,), dtype="int32")
    x = layers.Embedding(work.VOCABULARY, work.WIDTH)(tokens)
    for _ in range(work.LAYERS):
        near = layers.LayerNormalization()(x)
        attend = layers.MultiHeadAttention(work.HEADS, work.WIDTH // work.HEADS)
        x = layers.Add()([x, attend(near, near, use_causal_mask=True)])
        near = layers.LayerNormalization()(x)
        near = layers.Dense(4 * work.WIDTH, "gelu")(near)
        x = layers.Add()([x, layers.Dense(work.WIDTH)(near)])
    return keras.Model(tokens, layers.Dense(work.VOCABULARY)(layers.LayerNormalization()(x)))


_BUILD = {"mlp": _mlp, "cnn": _cnn, "transformer": _transformer}
