"""What tests in child processes share: the strategy of the process, and small models and data."""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfaccel.distribute import _private
from tfaccel.distribute.mirrored import MirroredStrategy


class Watching(MirroredStrategy):
    """A `MirroredStrategy` that keeps what Keras handed to it."""

    def __init__(self) -> None:
        super().__init__([d.name[-5:] for d in tf.config.list_logical_devices("CPU")])
        self.forget()

    def forget(self) -> None:
        self.datasets: list[tf.data.Dataset] = []
        self.callers: list[Any] = []
        self.functions: list[Any] = []

    def experimental_distribute_dataset(self, dataset: Any, options: Any = None) -> Any:
        self.datasets.append(dataset)
        self.callers.append(_private.calling_model())
        return super().experimental_distribute_dataset(dataset, options)

    def run(self, fn: Any, args: Any = (), kwargs: Any = None, options: Any = None) -> Any:
        self.functions.append(fn)
        return super().run(fn, args, kwargs, options)


@functools.cache
def mirrored() -> Watching:
    """One replica on each logical CPU of this child."""
    return Watching()


def data(rows: int = 10) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, 3)).astype("float32"), rng.integers(0, 2, (rows, 1))


def linear(optimizer: Any = None, loss: Any = "mse", *, units: int = 1, **more: Any) -> Any:
    """A compiled model whose weights start at one; `optimizer` makes the optimizer."""
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(units, kernel_initializer="ones")]
    )
    made = optimizer() if optimizer else keras.optimizers.SGD(0.1)
    model.compile(made, loss, **more)
    return model


def under(strategy: Any, make: Any, *args: Any, **kwargs: Any) -> Any:
    with strategy.scope():
        return make(*args, **kwargs)
