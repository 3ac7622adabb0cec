"""Files of a model whose pieces lie in several processes: one is written, once, in one step.

Every process calls, since every one holds a part of what is written.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.experimental import dtensor

from tfaccel.distribute.model_parallel import host_transfer
from tfaccel.distribute.optimizer import optimizers_of
from tfaccel.distribute.replacements import replaced
from tfaccel.errors import TfaccelError


def write_once(
    model: keras.Model,
    strategy: Any,
    path: str,
    write: Callable[[str], None],
    atomic: bool = True,
) -> None:
    """Writes one file for all processes.

    All gather the variables; the chief writes beside `path` and renames, while the others wait.

    Args:
        model: what is written.
        strategy: its strategy, with a `cluster`.
        path: where.
        write: writes the file it is given the path of.
        atomic: whether that is one file, which can be renamed when it is whole.

    Raises:
        TfaccelError: on the other processes, when the chief could not write.
    """
    atomic = atomic and "://" not in path  # a remote file is whole when it is there
    with _gather_to_chief(model, strategy):
        failed: BaseException | None = None
        if strategy.cluster.is_chief:
            folder, base = os.path.split(path)
            own = os.path.join(folder, f".writing.{base}") if atomic else path
            try:
                write(own)
                if atomic:
                    os.replace(own, path)
            except Exception as error:
                failed = error
                with contextlib.suppress(OSError):
                    os.remove(own)
    (wrong,) = strategy.broadcast([np.int32(failed is not None)])
    if failed is not None:
        raise failed
    if int(wrong):
        raise TfaccelError(
            f"tfaccel: worker 0 could not write {path}, which it writes for all; see its error."
        )


@contextlib.contextmanager
def _gather_to_chief(model: keras.Model, strategy: Any) -> Iterator[None]:
    """Gathers every variable of `model` in one order on all; the chief holds on to them."""
    values: dict[int, np.ndarray] = {}
    variables = [*model.variables, *(v for o in optimizers_of(model) for v in o.variables)]
    for variable in {id(v.value): v.value for v in variables}.values():
        value = variable.numpy()
        if strategy.cluster.is_chief:
            values[id(variable)] = value
    with replaced(strategy, "gathered_values", values):
        yield


def broadcast(values: list[Any], cluster: Any, devices: Any) -> list[tf.Tensor]:
    """Gives every process the chief's values.

    Args:
        values: arrays of the same dtypes and shapes in all processes.
        cluster: the processes.
        devices: the devices of this one.

    Returns:
        What the chief passed.
    """
    # A line of all devices: only the chief's first one holds the value, and all are summed.
    mesh = dtensor.create_distributed_mesh(
        [("all", cluster.size * len(devices))],
        local_devices=list(devices),
        device_type=devices[0].partition(":")[0],
    )
    received = []
    for value in values:
        with tf.device("/CPU:0"):
            mine = tf.convert_to_tensor(value)[None]
            none = tf.zeros_like(mine)
        parts = [mine if cluster.is_chief and i == 0 else none for i in range(len(devices))]
        whole = dtensor.pack(
            parts, host_transfer.layout(("all", *[None] * (mine.shape.rank - 1)), mesh)
        )
        received.append(tf.convert_to_tensor(host_transfer.gather(tf.reduce_sum(whole, axis=0))))
    return received
