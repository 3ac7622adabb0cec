"""Keras's trainer: which objects have `fit`, their strategy, steps, and how they create variables.

Keras has no hook for a strategy to read or change any of this. Seen with Keras 3.15, watched
by `tests/distribute/test_private.py`.
"""

from __future__ import annotations

import gc
import types
from typing import Any

import keras
import tensorflow as tf

# Objects with `fit` other than `keras.Model`: layers of Keras's trainer class, which is not public.
from keras.src.backend.tensorflow.trainer import TensorFlowTrainer

from tfaccel.distribute.call_stack import calls

__all__ = [
    "BeforeSaving",
    "BuildsFromSteps",
    "TensorFlowTrainer",
    "build_all",
    "is_keras_function",
    "is_trainer",
    "live_trainers_and_optimizers",
    "plain_step",
    "set_initial_epoch",
    "set_strategy",
    "step_function",
    "strategy_at_compile",
]


def is_trainer(instance: Any) -> bool:
    """Whether `instance` is a layer with `fit`: a model, or of Keras's bare `Trainer`."""
    return isinstance(instance, keras.layers.Layer) and isinstance(instance, TensorFlowTrainer)


def plain_step(model: Any, name: str) -> Any:
    """A step of `model`, without the `tf.function` with which its class may decorate it.

    Keras traces a step into its own function. In a nested one, replicas cannot reduce.
    """
    of_class = getattr(type(model), name)
    if isinstance(of_class, tf.types.experimental.PolymorphicFunction):
        return types.MethodType(of_class.python_function, model)
    return getattr(model, name)


def live_trainers_and_optimizers() -> tuple[list[Any], list[Any]]:
    """All objects with `fit`, and all optimizers, of this process; Keras keeps no list."""
    optimizer, layer = keras.optimizers.Optimizer, keras.layers.Layer
    matches: list[Any] = []
    relevant: dict[type, bool] = {}
    for instance in gc.get_objects():
        cls = type(instance)
        if (is_wanted := relevant.get(cls)) is None:
            is_wanted = relevant[cls] = issubclass(cls, (TensorFlowTrainer, optimizer))
        if is_wanted and hasattr(instance, "_tracker"):  # not yet set during construction
            matches.append(instance)
    trainers = [instance for instance in matches if isinstance(instance, layer)]
    return trainers, [instance for instance in matches if isinstance(instance, optimizer)]


def is_keras_function(fn: Any) -> bool:
    """Whether `fn` is one of the functions `keras.Model` passes to `strategy.run`.

    `train_step` and `test_step` are bound methods of the model; `predict` passes a closure of
    Keras's trainer module.
    """
    if is_trainer(getattr(fn, "__self__", None)):
        return getattr(fn, "__name__", "") in ("train_step", "test_step")
    return str(getattr(fn, "__module__", "")).startswith("keras.")


def step_function(function: Any, depth: int = 4) -> Any:
    """The `tf.function` of one step, inside the function that Keras calls for one or more.

    Keras keeps it in the closure `one_step_on_data` of `model.train_function`.

    Args:
        function: as `model.train_function`.
        depth: of closures to search.

    Returns:
        None where there is none: the model runs eagerly, or creates its own function.
    """
    if isinstance(function, tf.types.experimental.PolymorphicFunction):
        return function
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    for name, cell in zip(names, getattr(function, "__closure__", None) or (), strict=False):
        if depth and name in ("one_step_on_data", "step_func"):
            return step_function(cell.cell_contents, depth - 1)
    return None


def set_strategy(model: Any, strategy: Any) -> None:
    """Makes `fit`, `evaluate` and `predict` of a model use `strategy`.

    Keras remembers the strategy in whose scope a model was constructed; it is publicly read-only.
    """
    model._distribute_strategy = strategy


def strategy_at_compile(model: Any) -> Any:
    """The strategy that a model was constructed in; None if `fit` takes the current one."""
    return model._distribute_strategy


def build_all(model: keras.Model, x: Any, y: Any) -> None:
    """Creates the variables of a model, its metrics and its optimizer, as the first batch would.

    Args:
        model: compiled.
        x: `keras.KerasTensor`s of a batch.
        y: the same.
    """
    model._symbolic_build(data_batch=(x, y))


class BuildsFromSteps:
    """Mixin for a model that creates its variables before its steps run, unlike Keras's way.

    Under any strategy Keras calls the model on symbolic inputs in `_symbolic_build`, which fails
    for a model without a `call`; there is no public way to skip that.
    """

    def build_for(self, method: str, batch: Any, failed: bool) -> bool:
        """Creates the variables of a step.

        Args:
            method: `fit`, `evaluate`, `train_on_batch` or `test_on_batch`.
            batch: what Keras would build from.
            failed: whether Keras has tried and failed.

        Returns:
            Whether it has; else Keras tries, or its error is raised.
        """
        raise NotImplementedError

    def _symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        functions = (call.function for call in calls())
        method = next((f for f in functions if f != "_maybe_symbolic_build"), "")
        if self.build_for(method, data_batch, False):
            return
        try:
            super()._symbolic_build(iterator, data_batch)  # type: ignore[misc]
        except Exception:
            if not self.build_for(method, data_batch, True):
                raise


def set_initial_epoch(model: keras.Model, epoch: int) -> None:
    """Makes the running `fit` start at `epoch`, as Keras's BackupAndRestore does."""
    model._initial_epoch = epoch


class BeforeSaving:
    """Mixin for a Keras callback that may save after any batch.

    Its count of batches differs between a worker that saves and one that does not, so it cannot
    decide when all must do something first. It checks in `_should_save_on_batch`.
    """

    save_freq: Any

    def due(self, batch: int) -> bool:
        """Called after each batch when `save_freq` is a number; whether to save now."""
        raise NotImplementedError

    def _should_save_on_batch(self, batch: int) -> bool:
        super()._should_save_on_batch(batch)  # type: ignore[misc]  # what it writes of its count
        return self.save_freq != "epoch" and self.due(batch)
