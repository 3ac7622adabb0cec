"""How long a step of a model takes on one device, without other workers."""

from __future__ import annotations

import statistics
import time
from typing import Any

from tfaccel.errors import StrategyError

_MAX_S = 10.0


def load(path: str) -> Any:
    """The Keras model in a file.

    Raises:
        StrategyError: there is none.
    """
    import keras

    try:
        return keras.saving.load_model(path, compile=False)
    except (OSError, ValueError) as error:
        raise StrategyError(
            f"--model {path} cannot be loaded ({error}); give a .keras file."
        ) from error


def gradient_bytes(model: Any) -> float:
    """Bytes of the gradients of `model` in float32."""
    return float(sum(4 * v.value.shape.num_elements() for v in model.trainable_variables))


def seconds(model: Any, rows: int) -> float:
    """The median time of a training step: forward, backward and an update by Adam.

    Args:
        model: a built model with inputs of known shapes. Its weights change.
        rows: of a batch; all are zeros, and the loss is the mean of the outputs.

    Raises:
        StrategyError: an input has an unknown dimension.
    """
    import keras
    import tensorflow as tf

    shapes = [tuple(i.shape[1:]) for i in getattr(model, "inputs", None) or []]
    if not shapes or any(None in shape for shape in shapes):
        raise StrategyError(
            f"--model has inputs of shapes {shapes}; expected known sizes; give --step-ms instead."
        )
    inputs = [
        tf.zeros([rows, *shape], tensor.dtype)
        for shape, tensor in zip(shapes, model.inputs, strict=True)
    ]
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)

    @tf.function
    def step() -> None:
        with tf.GradientTape() as tape:
            outputs = tf.nest.flatten(
                model(inputs if len(inputs) > 1 else inputs[0], training=True)
            )
            loss = tf.add_n([tf.reduce_mean(tf.cast(o, tf.float32)) for o in outputs])
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)

    times: list[float] = []
    step()  # traced
    while len(times) < 3 or (sum(times) < _MAX_S and len(times) < 30):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return statistics.median(times)
