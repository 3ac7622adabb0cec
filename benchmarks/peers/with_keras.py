"""A worker that trains through `model.fit`: Keras alone, or under a strategy of tfaccel."""

from __future__ import annotations

import contextlib
from typing import Any

import keras
import tensorflow as tf
from epochs import StepTime

import tfaccel
from peers import keras_models, work
from tfaccel.errors import TfaccelError


def train(task: work.Task) -> dict[str, Any]:
    """Milliseconds per step of each timed epoch, and the loss of the last.

    An option that the strategy refuses is answered with why, as ``refused``.
    """
    try:
        scope = _scope(task)
    except TfaccelError as error:
        return {"refused": str(error)}
    with scope:
        model = keras_models.build(task.model)
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
    options = {"gradient_compression": task.wire} if task.wire else {}
    return tfaccel.strategy(
        "multi_worker_mirrored", communication=task.communication, device_type="cpu", **options
    ).scope()
