"""What tests in child processes share: the strategy of the process, and small models and data."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.fallbacks import Fallbacks
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


def both_ways(
    made: Any, rows: int, batch: int, tokens: int = 0, slots: str = "", logs: bool = True
) -> None:
    """Trains `made()` for two epochs under plain Keras and under a strategy, and compares.

    Args:
        made: makes and compiles a model.
        rows: of the data.
        batch: rows of a global batch.
        tokens: how many ids there are; 0 for four floating features.
        slots: in the paths of optimizer variables that are compared too.
        logs: whether the histories are compared.
    """
    generator = np.random.default_rng(0)
    x: Any = generator.normal(size=(rows, 4)).astype("float32")
    y = x[:, :1] * 2 - x[:, 1:2] + 0.5
    if tokens:
        x = generator.integers(0, tokens, (rows, 5)).astype("int32")
    found = []
    for strategy in (None, mirrored()):
        keras.utils.set_random_seed(5)
        with strategy.scope() if strategy is not None else contextlib.nullcontext():
            model = made()
        if strategy is None and model.built:
            # As a strategy does; else Keras would trace the step a second time.
            model.optimizer.build(model.trainable_variables)
        fit = {"batch_size": batch, "epochs": 2, "shuffle": False, "verbose": 0}
        with Fallbacks() as fallbacks:
            history = model.fit(x, y, **fit).history
        assert fallbacks.said == [], "the numbers are right, and the replicas share no work"
        kept = [v for v in model.optimizer.variables if slots and slots in v.path]
        said = [history[key] for key in sorted(history)] if logs else []
        found.append([np.asarray(v) for v in [*model.weights, *kept, *said]])
    for ours, theirs in zip(*reversed(found), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
