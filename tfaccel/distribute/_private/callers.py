"""Who asks: what is read from the calls that led to us (`call_stack.py`).

Keras tells a strategy about a dataset and a step, never about the model, its callbacks, the number
of steps, or which library reads the number of replicas. Seen with TensorFlow 2.21 and Keras 3.15,
watched by `tests/distribute/test_private.py` and `tests/model_parallel/test_private.py`.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfaccel.distribute._private.keras_trainer import is_trainer
from tfaccel.distribute.call_stack import Call, calls

__all__ = [
    "Caller",
    "asked_without_replica",
    "batch_of_step",
    "building_model",
    "calling_library",
    "calling_model",
    "compiling_model",
    "is_called_by_keras",
    "loss_asks",
    "optimizer_being_made",
    "predicting_model",
]


class Caller(NamedTuple):
    """A `Model` method that requests its data: ``"fit"``, ``"evaluate"`` or ``"predict"``.

    Attributes:
        model: whose method it is.
        method: its name.
        callbacks: that it was given, or None.
        threads: Keras's reader of a `PyDataset` with workers, or None.
        epoch: Keras's iterator over the steps of an epoch, which is being made.
        limits: the numbers of steps that it was given, each maybe None.
        validates: whether a `fit` of the model has begun: these are its validation data, or those
            of a callback.
    """

    model: keras.Model
    method: str
    callbacks: Any
    threads: Any = None
    epoch: Any = None
    limits: tuple[int | None, ...] = ()
    validates: bool = False


def calling_model() -> Caller | None:
    """The `Model` method that is asking for its data.

    Keras tells a strategy about a dataset and a step, never about callbacks, and two of those must
    know that they run on many workers; and how many steps it runs in a call must be known before.
    We read the arguments of the calling frame: `fit`, `self`, `callbacks` and `steps_per_epoch`
    are public names.

    Returns:
        None when it is not Keras's trainer that asks, but a script or a callback.
    """
    outwards = calls()
    asks = next(filter(_is_keras, outwards), None)
    if asks is None or asks.function != "__init__":  # of Keras's iterator over an epoch
        return None
    epoch = asks.local("self")
    threads = getattr(getattr(epoch, "data_adapter", None), "enqueuer", None)
    for call in itertools.takewhile(_is_keras, outwards):
        if call.function in ("fit", "evaluate", "predict"):
            model, given = call.local("self"), call.local
            if is_trainer(model):
                limits = tuple(map(given, ("steps_per_epoch", "validation_steps", "steps")))
                fits = (c.function == "fit" and c.local("self") is model for c in outwards)
                begun = given("epoch_iterator") is not None or any(fits)
                return Caller(
                    model, call.function, given("callbacks"), threads, epoch, limits, begun
                )
    return None


def building_model() -> Any:
    """The model that is about to be built by Keras, seen from a strategy's `scope()`.

    `train_on_batch` asks a strategy for its scope, to build the model, before anything else.
    """
    asks = next(calls(1))
    builds = asks.function == "_maybe_symbolic_build" and _is_keras(asks)
    return asks.local("self") if builds else None


def compiling_model() -> keras.Model | None:
    """The model inside whose `compile` we are.

    A model on a mesh must be known before its first batch, and the metrics that `compile` makes
    are the last thing of it that a strategy sees.
    """
    compiles = (call for call in calls() if call.function == "compile" and _is_keras(call))
    return _trainer_of(next(compiles, None))


def predicting_model() -> Any:
    """The model whose predict function calls `strategy.run`; what it is given is a closure."""
    return _trainer_of(next(filter(_is_keras, calls(1)), None))


def batch_of_step() -> Any:
    """The batch of the step that Keras is about to trace or run, as its trainer was given it.

    Inside the function a batch has no values. We read the local variable `data` of the function
    that takes batches and calls it.

    Returns:
        None when it is not `fit` or `train_on_batch` that calls.
    """
    for call in calls():
        if call.function == "function" and call.module.endswith("tensorflow.trainer"):
            return call.local("data")
    return None


def optimizer_being_made() -> keras.optimizers.Optimizer | None:
    """The optimizer inside whose constructor we are.

    Keras tells a strategy about variables alone, and an optimizer that no model was compiled with
    is seen nowhere else. Its counter is its first variable.
    """
    outside = itertools.dropwhile(lambda call: not _is_keras(call), calls())
    for call in itertools.takewhile(_is_keras, outside):
        made = call.local("self")
        if call.function == "__init__" and isinstance(made, keras.optimizers.Optimizer):
            return made
    return None


def is_called_by_keras() -> bool:
    """Whether Keras calls the method that asks: a step may be a function put on the instance."""
    return _is_keras(next(calls(1)))


def calling_library() -> str:
    """``"keras"`` or ``"tensorflow"``, which read the property that calls us for their own use.

    A replica context's `num_replicas_in_sync` reads the strategy's, for whoever asked it: then it
    is the caller of that who counts.

    Returns:
        An empty text for the user's code.
    """
    outwards = calls(1)
    asks = next(outwards)
    if asks.function == "num_replicas_in_sync":
        asks = next(outwards, asks)
    package = asks.module.partition(".")[0]
    return package if package in ("keras", "tensorflow") else ""


def loss_asks() -> bool:
    """Whether a loss of Keras reads the property that calls us, to divide itself by it.

    It does so in `scale_loss_for_distribution` wherever it is called. Keras's trainer reads the
    same property outside of replicas to know how many parts a gathered result has.
    """
    return next(calls(1)).is_of("keras.src.losses")


def asked_without_replica() -> bool:
    """Whether an optimizer of Keras asks, outside of replicas, if it may pause the others.

    It would then call `merge_call` of the replica that it is in, and there is none. The question
    is `Extended._use_merge_call`, and `strategy_supports_no_merge_call` the public name that asks.
    """
    asks = next(calls(1)).function == "strategy_supports_no_merge_call"
    return bool(asks and tf.distribute.in_cross_replica_context())


def _is_keras(call: Call) -> bool:
    return call.is_of("keras")


def _trainer_of(call: Call | None) -> Any:
    model = call.local("self") if call is not None else None
    return model if is_trainer(model) else None
