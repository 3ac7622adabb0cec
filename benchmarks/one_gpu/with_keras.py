"""A process that trains through `model.fit`: Keras on TensorFlow or JAX, or under tfaccel."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras

from one_gpu import keras_models
from one_gpu.task import Task


class Rounds(keras.callbacks.Callback):
    """Times each epoch, to the end of its last step."""

    def __init__(self, task: Task, say: Callable[[dict[str, Any]], None]) -> None:
        super().__init__()
        self._task, self._say = task, say
        self._begun = 0.0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._begun = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        loss = float(logs["loss"])  # waits for the last step
        spent = time.perf_counter() - self._begun
        self._say({"step_time_ms": spent / self._task.steps * 1e3, "loss": loss})


def train(task: Task, say: Callable[[dict[str, Any]], None], wait: Callable[[], None]) -> None:
    """Prepares, waits for its turn, and trains.

    Args:
        task: what.
        say: is given what is measured, as it comes.
        wait: returns when it is this process's turn.
    """
    scope = _scope(task)
    if task.device == "gpu":
        keras.config.set_dtype_policy("mixed_bfloat16")
    keras.utils.set_random_seed(0)
    x, y = keras_models.batch(task)
    with scope:
        model = keras_models.build(task)
        optimizer = keras_models.optimizer(task)
        if task.fused:
            from tfaccel.distribute.fused import fuse

            fuse(optimizer)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        jit = True if task.library == "jax" else task.xla == "jit"
        model.compile(optimizer, loss, jit_compile=jit)
    say({"parameters": model.count_params(), "card": _card(task), "versions": _versions(task)})
    wait()
    begun = time.perf_counter()
    first = model.fit(_data(task, x, y, task.warm), steps_per_epoch=task.warm, verbose=0)
    say({"warm_s": time.perf_counter() - begun, "first_loss": first.history["loss"][0]})
    data = _data(task, x, y, None)
    timer = Rounds(task, say)
    model.fit(data, steps_per_epoch=task.steps, epochs=task.rounds, verbose=0, callbacks=[timer])
    say({"peak_gib": _peak(task)})


def _scope(task: Task) -> Any:
    if task.strategy:
        import tfaccel

        xla = {"xla": True} if task.xla == "clusters" else {}
        return tfaccel.strategy(task.strategy, devices=1, device_type=task.device, **xla).scope()
    if task.data == "pinned":
        _pin()
    return contextlib.nullcontext()


def _pin() -> None:
    """Lets TensorFlow keep all tensors of the host where the GPU can read them.

    There is no public way: the option belongs to the sessions of TensorFlow 1.
    """
    import tensorflow as tf
    from tensorflow.python.eager import context

    config = tf.compat.v1.ConfigProto()
    config.gpu_options.force_gpu_compatible = True
    config.gpu_options.allow_growth = True
    context.context()._config = config


def _data(task: Task, x: Any, y: Any, steps: int | None) -> Any:
    """The same batch again and again: what reading and decoding cost is not the question."""
    if task.library == "jax":
        return _forever(x, y)
    import tensorflow as tf

    data = tf.data.Dataset.from_tensors((x, y)).cache().repeat()
    data = data.take(steps) if steps else data
    if task.data == "device" and task.device == "gpu":
        return data.apply(tf.data.experimental.prefetch_to_device("/GPU:0", buffer_size=2))
    return data.prefetch(2)


def _forever(x: Any, y: Any) -> Iterator[Any]:
    while True:
        yield x, y


def _card(task: Task) -> str:
    if task.device == "cpu":
        return "CPU"
    if task.library == "jax":
        import jax

        return str(jax.local_devices()[0].device_kind)
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        raise RuntimeError("TensorFlow sees no GPU (--device cpu tries without)")
    return str(tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU"))


def _peak(task: Task) -> float | None:
    if task.device == "cpu":
        return None
    if task.library == "jax":
        import jax

        return float(jax.local_devices()[0].memory_stats()["peak_bytes_in_use"]) / 2**30
    import tensorflow as tf

    return float(tf.config.experimental.get_memory_info("GPU:0")["peak"]) / 2**30


def _versions(task: Task) -> dict[str, str]:
    backend = __import__(task.library)
    return {"keras": keras.__version__, task.library: backend.__version__}
