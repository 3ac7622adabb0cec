"""Callers: what is read from the call stack (`call_stack.py`).

Keras passes a strategy a dataset and a step, never the model, its callbacks, the number of steps,
or which library reads the number of replicas. Seen with TensorFlow 2.21 and Keras 3.15, watched by
`tests/distribute/test_private.py` and `tests/model_parallel/test_private.py`.
"""

from __future__ import annotations

import itertools
import re
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfaccel.distribute._private.keras_epochs import PyDatasetAdapter
from tfaccel.distribute._private.keras_trainer import is_trainer, plain_step
from tfaccel.distribute.call_stack import Call, calls, calls_of_thread

__all__ = [
    "Activity",
    "Caller",
    "activity",
    "batch_of_step",
    "building_model",
    "calling_library",
    "calling_model",
    "compiling_model",
    "is_called_by_keras",
    "is_called_by_loss",
    "optimizer_being_made",
    "predicting_model",
    "training_method",
    "undecorated_step",
    "updates_without_replica",
]

_CALLBACK_LIST = "keras.src.callbacks.callback_list"
_GRAPHS, _MAKES_GRAPH = "tensorflow.python.framework.func_graph", "func_graph_from_py_func"
_DEBUGGERS = ("bdb", "pdb", "pydevd", "debugpy")


class Caller(NamedTuple):
    """A `Model` method that requests its data: ``"fit"``, ``"evaluate"`` or ``"predict"``.

    Attributes:
        model: whose method it is.
        method: its name.
        callbacks: passed to it, or None.
        threads: Keras's reader of a `PyDataset` with workers, or None.
        inspected: whether Keras takes a batch of a `PyDataset` before the first pass, to inspect
            shapes, and the first pass can request all batches again, by index.
        epoch: Keras's iterator over the steps of an epoch, under construction.
        limits: the numbers of steps passed to it, each possibly None.
        validates: whether a `fit` of the model has begun: these are its validation data, or those
            of a callback.
        total: the number of batches it takes from one pass, where it was passed numbers of steps;
            else None.
    """

    model: keras.Model
    method: str
    callbacks: Any
    threads: Any = None
    epoch: Any = None
    limits: tuple[int | None, ...] = ()
    validates: bool = False
    inspected: bool = False
    total: int | None = None


def calling_model() -> Caller | None:
    """The `Model` method that is requesting its data.

    Keras passes a strategy a dataset and a step, never callbacks, and two of those must know that
    they run on many workers; the number of steps per call must also be known beforehand. So it
    reads the arguments of the calling frame: `fit`, `self`, `callbacks` and `steps_per_epoch` are
    public names.

    Returns:
        None when the caller is not Keras's trainer, but a script or a callback.
    """
    outwards = calls()
    asks = next(filter(_is_keras, outwards), None)
    if asks is None or asks.function != "__init__":  # of Keras's iterator over an epoch
        return None
    epoch = asks.local("self")
    adapter = getattr(epoch, "data_adapter", None)
    threads = getattr(adapter, "enqueuer", None)
    for call in itertools.takewhile(_is_keras, outwards):
        if call.function in ("fit", "evaluate", "predict"):
            model, local = call.local("self"), call.local
            if is_trainer(model):
                limits = tuple(map(local, ("steps_per_epoch", "validation_steps", "steps")))
                fits = (c.function == "fit" and c.local("self") is model for c in outwards)
                begun = local("epoch_iterator") is not None or any(fits)
                inspected = _inspects(call.function, adapter)
                total = None if begun else _batches_taken(call, model)
                about = (threads, epoch, limits, begun, inspected, total)
                return Caller(model, call.function, local("callbacks"), *about)
    return None


def _batches_taken(call: Call, model: Any) -> int | None:
    """How many batches a `fit` takes in all its epochs, or an `evaluate` or `predict`."""
    fits = call.function == "fit"
    steps = call.local("steps_per_epoch" if fits else "steps")
    if not steps:
        return None
    steps = int(steps)
    per_call = int(model.steps_per_execution)  # Keras runs whole calls
    epochs = call.local("epochs") - call.local("initial_epoch") if fits else 1
    # Without an epoch to run Keras looks at a batch all the same.
    return max(1, -(-steps // per_call) * per_call * epochs)


def _inspects(method: str, adapter: Any) -> bool:
    if method == "predict" or not isinstance(adapter, PyDatasetAdapter):
        return False
    # Threads that read an infinite dataset continue where they were, and lose nothing.
    return adapter.enqueuer is None or adapter.num_batches is not None


def building_model() -> Any:
    """The model that is about to be built by Keras, seen from a strategy's `scope()`.

    `train_on_batch` enters a strategy's scope, to build the model, before anything else.
    """
    asks = next(calls(1))
    builds = asks.function == "_maybe_symbolic_build" and _is_keras(asks)
    return asks.local("self") if builds else None


class Activity(NamedTuple):
    """What a training thread is doing, from its call stack.

    Attributes:
        debugger: whether a debugger is attached.
        callback: the callback's method that it is in; empty for none.
        method: ``"fit"``, ``"validation"``, ``"evaluate"`` or ``"predict"``; empty for none.
        where: the batch, in words; empty where there is none.
        traces: whether Python is tracing a graph.
    """

    debugger: bool = False
    callback: str = ""
    method: str = ""
    where: str = ""
    traces: bool = False


def activity(thread: int) -> Activity:
    """What a thread is doing.

    Callbacks do not see data waits, tracing, or each other. Only the variables of `fit` and
    `evaluate` are read: they are Keras's, and small.

    Args:
        thread: its number.
    """
    callback = method = where = ""
    seen = traces = False  # the list of callbacks; a function that is being traced
    inner: Call | None = None
    for call in calls_of_thread(thread):
        if re.split(r"[._]", call.module.lstrip("_"))[0] in _DEBUGGERS:
            return Activity(debugger=True)
        traces = traces or (call.function == _MAKES_GRAPH and call.module == _GRAPHS)
        if call.module == _CALLBACK_LIST and not (method or seen):
            seen = True
            # Where devices run asynchronously, it waits for the step as it reads the logs.
            reads = inner is not None and inner.function == "pythonify_logs"
            callback = "" if reads else (inner or call).qualified_name
        elif _is_trainers(call):
            step, epoch = call.local("begin_step"), call.local("epoch")
            if method and call.function == "fit":  # its callee is validation
                method = "validation" if method == "evaluate" else method
                where += f" after epoch {epoch + 1}" if where and epoch is not None else ""
                break
            if method:
                break
            method = call.function
            where = f"batch {step + 1}" if step is not None else ""
            where += f" of epoch {epoch + 1}" if where and epoch is not None else ""
            where += f" of {method}" if where and method != "fit" else ""
        inner = call
    return Activity(False, callback, method, f" ({where})" if where else "", traces)


def training_method() -> str:
    """As `Activity.method`, for the calling thread."""
    methods = [call.function for call in calls() if _is_trainers(call)]
    if methods[:2] == ["evaluate", "fit"]:
        return "validation"
    return methods[0] if methods else ""


def compiling_model() -> keras.Model | None:
    """The model whose `compile` is running.

    A model on a mesh must be known before its first batch, and the metrics that `compile` creates
    are the last of it that a strategy sees.
    """
    compiles = (call for call in calls() if call.function == "compile" and _is_keras(call))
    return _trainer_of(next(compiles, None))


def predicting_model() -> Any:
    """The model whose predict function calls `strategy.run`, which gets a closure."""
    return _trainer_of(next(filter(_is_keras, calls(1)), None))


def undecorated_step(fn: Any) -> Any:
    """The plain method behind what Keras passes to `strategy.run`, as `plain_step`.

    Args:
        fn: returned unchanged unless it is a step of the model whose trainer calls.
    """
    if not isinstance(fn, tf.types.experimental.PolymorphicFunction):
        return fn
    model = predicting_model()
    steps = [name for name in ("train_step", "test_step") if getattr(model, name, None) is fn]
    return plain_step(model, steps[0]) if steps else fn


def batch_of_step() -> Any:
    """The batch of the step that Keras is about to trace or run, as passed to its trainer.

    Inside the function a batch has no values. It reads the local variable `data` of the function
    that takes batches and calls it, or the argument that `predict` passes.

    Returns:
        None when the caller is not Keras's trainer.
    """
    for call in calls():
        if not call.module.endswith("tensorflow.trainer"):
            continue
        if call.function == "function":
            return call.local("data")
        if call.function == "predict":
            return call.local("data")[0]
        if call.function == "predict_on_batch":
            return (call.local("x"),)
    return None


def optimizer_being_made() -> keras.optimizers.Optimizer | None:
    """The optimizer whose constructor is running.

    Keras informs a strategy only about variables, and an optimizer without a compiled model is
    visible nowhere else. Its counter is its first variable.
    """
    outside = itertools.dropwhile(lambda call: not _is_keras(call), calls())
    for call in itertools.takewhile(_is_keras, outside):
        instance = call.local("self")
        if call.function == "__init__" and isinstance(instance, keras.optimizers.Optimizer):
            return instance
    return None


def is_called_by_keras() -> bool:
    """Whether Keras calls the current method: a step may be a function set on the instance."""
    return _is_keras(next(calls(1)))


def calling_library() -> str:
    """``"keras"`` or ``"tensorflow"`` if they read the calling property for their own use.

    A replica context's `num_replicas_in_sync` reads the strategy's, for any caller: then its caller
    counts.

    Returns:
        An empty string for the user's code.
    """
    outwards = calls(1)
    asks = next(outwards)
    if asks.function == "num_replicas_in_sync":
        asks = next(outwards, asks)
    package = asks.module.partition(".")[0]
    return package if package in ("keras", "tensorflow") else ""


def is_called_by_loss() -> bool:
    """Whether a Keras loss reads the calling property, to divide itself by it.

    It does so in `scale_loss_for_distribution` wherever it is called. Keras's trainer reads the
    same property outside of replicas to know how many parts a gathered result has.
    """
    return next(calls(1)).is_of("keras.src.losses")


def updates_without_replica() -> bool:
    """Whether a Keras optimizer checks, outside of replicas, if it may pause the others.

    It would then call `merge_call` of its replica, and there is none. The check is
    `Extended._use_merge_call`, which the public `strategy_supports_no_merge_call` reads.
    """
    asks = next(calls(1)).function == "strategy_supports_no_merge_call"
    return bool(asks and tf.distribute.in_cross_replica_context())


def _is_trainers(call: Call) -> bool:
    """Whether this is Keras's own `fit`, `evaluate` or `predict`."""
    trains = call.function in ("fit", "evaluate", "predict")
    return trains and call.is_of("keras") and call.module.endswith("tensorflow.trainer")


def _is_keras(call: Call) -> bool:
    return call.is_of("keras")


def _trainer_of(call: Call | None) -> Any:
    model = call.local("self") if call is not None else None
    return model if is_trainer(model) else None
