"""Every private TensorFlow and Keras name that tfaccel uses, each with its reason.

Seen with TensorFlow 2.21 and Keras 3.15. `tests/distribute/test_private.py` watches each one:
when a release moves a name, that test says which and this file is the one place to mend.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import tensorflow as tf

# The stack of Keras's name scopes knows which layers are being built around a variable; under a
# mesh its layout follows from them. Public are only the path and the layer once all is made.
from keras.src import backend as keras_backend
from keras.src.backend.common import global_state
from keras.src.backend.common.name_scope import current_path
from keras.src.models.functional import Functional, operation_fn

# Host tensors up to this many elements become constants of a graph, larger ones its inputs.
from tensorflow.core.function.capture.capture_container import (
    _EAGER_CONST_THRESHOLD as LARGEST_CONSTANT,
)

# What `iter(dataset)` is, which Keras lets take its batches inside a function. Public is only its
# base, which has no batches.
from tensorflow.python.data.ops.iterator_ops import OwnedIterator as DatasetIterator

# The Extended classes hold what a strategy does; TensorFlow exports only their owners. We
# override how variables are made, whether replicas may pause for each other, and which of a
# worker's devices are used.
from tensorflow.python.distribute.collective_all_reduce_strategy import (
    CollectiveAllReduceExtended,
)

# Every reduction and gathering of the strategies above goes through this class and its
# `_launchers`, one for each device; other transports take their place there.
from tensorflow.python.distribute.cross_device_ops import CollectiveAllReduce
from tensorflow.python.distribute.mirrored_strategy import MirroredExtended
from tensorflow.python.distribute.tpu_strategy import TPUExtended

# What a replica is handed, and how tf.function sees it. An empty one stands for None in a batch.
from tensorflow.python.distribute.values import PerReplica, PerReplicaSpec

# `tf.random.set_seed` has no getter.
from tensorflow.python.eager.context import global_seed

# Whether oneDNN computes is decided when TensorFlow is imported, and told nowhere.
from tensorflow.python.util._pywrap_util_port import IsMklEnabled

__all__ = [
    "LARGEST_CONSTANT",
    "AnyRows",
    "BeforeClipping",
    "BeforeSaving",
    "Caller",
    "CollectiveAllReduce",
    "CollectiveAllReduceExtended",
    "DatasetIterator",
    "FixedRows",
    "MirroredExtended",
    "PerReplica",
    "ReadByValue",
    "TPUExtended",
    "accumulation",
    "adam_slots",
    "adopt_optimizer",
    "all_gather",
    "all_to_all",
    "array_pipeline",
    "begin_again",
    "build_all",
    "calling_model",
    "compiled_losses",
    "compiled_metrics",
    "compiling_model",
    "dividing",
    "exchanges",
    "functional_of",
    "global_seed",
    "graph_nodes",
    "handle",
    "is_keras_function",
    "keras_mask",
    "layers_being_built",
    "layers_of",
    "loss_tracker",
    "loss_trackers",
    "onednn_is_on",
    "own_collectives",
    "pack_variables",
    "run_function",
    "set_initial_epoch",
    "set_keras_mask",
    "variable_path",
]


class AnyRows(PerReplica):  # type: ignore[misc]
    """A PerReplica batch whose number of rows `tf.function` does not look at.

    A step is then traced once for all batch sizes and sees `None` rows, as with the iterator of
    a dataset on one device. TensorFlow asks a value for its `_type_spec`.
    """

    @property
    def _type_spec(self) -> PerReplicaSpec:
        return PerReplicaSpec(*(_any_rows(tf.type_spec_from_value(v)) for v in self.values))


class FixedRows(PerReplica):  # type: ignore[misc]
    """A PerReplica batch with a static shape, which a batch of another size does not change.

    Keras makes its functions, one within the other, with `reduce_retracing`: where a second shape
    comes, `tf.function` asks the two specs for one that fits both, and traces with unknown sizes
    from then on. These have none.
    """

    @property
    def _type_spec(self) -> PerReplicaSpec:
        return _FixedSpec(*(tf.type_spec_from_value(v) for v in self.values))


class _FixedSpec(PerReplicaSpec):  # type: ignore[misc]
    @property
    def value_type(self) -> type:
        return FixedRows

    def _from_components(self, components: Any) -> FixedRows:
        return FixedRows(components)

    def most_specific_common_supertype(self, others: Any) -> _FixedSpec | None:
        return self if all(self == other for other in others) else None


class ReadByValue:
    """Mixin for a resource variable whose readers shall call `value()`.

    An eager operation reads a resource variable by the handle it finds as `_handle`, and asks
    nobody. Where `hidden()` holds it finds none, and converts the variable as any other object.
    """

    _held: Any

    def hidden(self) -> bool:
        """Whether operations shall not read by themselves now."""
        raise NotImplementedError

    @property
    def _handle(self) -> Any:
        return None if self.hidden() else self._held

    @_handle.setter
    def _handle(self, handle: Any) -> None:
        self._held = handle

    @property
    def handle(self) -> Any:
        """The handle of the resource."""
        return self._held


class BeforeClipping:
    """Mixin for a Keras optimizer that must see gradients once accumulated and not yet clipped.

    Keras accumulates and clips in one method. Inside, the one name that is called between the two,
    and only in a step that updates, is `_clip_gradients`.
    """

    def before_clipping(self, grads: list[Any]) -> list[Any]:
        """What to clip and apply in place of these gradients."""
        raise NotImplementedError

    def _clip_gradients(self, grads: Any) -> Any:
        return super()._clip_gradients(self.before_clipping(list(grads)))  # type: ignore[misc]


class BeforeSaving:
    """Mixin for a Keras callback that may save after any batch.

    Its count of batches differs between a worker that saves and one that does not, so that it
    cannot say when all shall do something first. `_should_save_on_batch` is where it asks.
    """

    save_freq: Any

    def due(self, batch: int) -> bool:
        """Called after each batch when `save_freq` is a number; whether to save now."""
        raise NotImplementedError

    def _should_save_on_batch(self, batch: int) -> bool:
        super()._should_save_on_batch(batch)  # type: ignore[misc]  # what it writes of its count
        return self.save_freq != "epoch" and self.due(batch)


def onednn_is_on() -> bool:
    """Whether oneDNN's kernels compute in this process."""
    return bool(IsMklEnabled())


def accumulation(optimizer: Any) -> tuple[Any, list[Any]]:
    """The count of all steps of `optimizer`, and what it has accumulated for each variable.

    The public `iterations` counts updates, and so does not say whether one is under way.
    """
    held = getattr(optimizer, "_accumulated_gradients", None) or []
    return optimizer._iterations, [v for v in held if v is not None]


def adam_slots(optimizer: keras.optimizers.Adam, variable: Any) -> tuple[Any, Any]:
    """The slots that Adam keeps for a variable; its public list does not say which are whose."""
    index = optimizer._get_variable_index(variable)
    return optimizer._momentums[index], optimizer._velocities[index]


def handle(variable: Any) -> tf.Tensor:
    """The resource of a variable, for an operation that changes it: the replica's own."""
    held = variable.value if isinstance(variable, keras.Variable) else variable
    return held.handle


def _any_rows(spec: Any) -> Any:
    shape = spec.shape
    if shape.rank in (None, 0):
        return spec
    shape = [None, *shape[1:]]
    if isinstance(spec, tf.RaggedTensorSpec):
        return tf.RaggedTensorSpec(shape, spec.dtype, spec.ragged_rank, spec.row_splits_dtype)
    return type(spec)(shape, spec.dtype)


def own_collectives(strategy: tf.distribute.Strategy) -> None:
    """Gives `strategy` collective keys of its own; call it before its Extended is made.

    All strategies of a process start from the same keys, so that the second one's first message
    meets what is left of the first one's ("Shape mismatch in the collective instance"). Workers
    make their strategies in the same order, and so agree.
    """
    strategy._collective_key_base = next(_key_bases)


_key_bases = itertools.count(1 << 20, 1 << 10)


def pack_variables(strategy: tf.distribute.TPUStrategy) -> None:
    """Lets a function capture one handle for all copies of a variable.

    TensorFlow's constructor does so, and makes an Extended of its own, which is why ours goes
    around it.
    """
    strategy._enable_packed_variable_in_eager_mode = True


def exchanges() -> int:
    """With how many replicas `all_to_all` and `all_gather` would exchange; 0 where they cannot.

    They stand in a graph, on CPU devices: eager replicas run one after the other, and what GPUs do
    has not been seen.
    """
    launcher = None if tf.executing_eagerly() else _launcher()
    if launcher is None or "CPU" not in str(launcher._device).upper():
        return 0
    return int(launcher._group_size)


def all_to_all(tensor: tf.Tensor) -> tf.Tensor:
    """Gives row `i` to replica `i`, and returns the rows that all replicas gave to us, in order.

    `tf.distribute` has no such collective. TensorFlow's own needs the keys by which a replica's
    collectives find those of the others, and these are counted in the launcher.

    Args:
        tensor: float16, float32, float64, int32 or int64, of as many rows as replicas.
    """
    launcher = _launcher()
    with tf.device(launcher._device):
        return tf.raw_ops.CollectiveAllToAllV2(
            input=tensor,
            group_size=launcher._group_size,
            group_key=launcher._group_key,
            instance_key=launcher._next_instance_key(),
            ordering_token=[launcher._get_ordering_token()],
            communication_hint=launcher._options.implementation.value.lower(),
            timeout_seconds=launcher._options.timeout_seconds or 0.0,
            is_stateless=False,
        )


def all_gather(tensor: tf.Tensor) -> tf.Tensor:
    """The rows of all replicas, in order; `ReplicaContext.all_gather` would pause the replicas.

    Args:
        tensor: of the dtypes of `all_to_all`, and of the same shape on every replica.
    """
    return _launcher()._all_gather(tensor, None)


def _launcher() -> Any:
    """What starts the collectives of the replica that we are in, or None without any."""
    context = tf.distribute.get_replica_context()
    extended = context.strategy.extended
    ours = getattr(extended, "_collective_ops", getattr(extended, "_cross_device_ops", None))
    launchers = getattr(ours, "_launchers", None)
    return launchers[context._replica_id] if launchers else None


@contextlib.contextmanager
def dividing(divide: Callable[[Any, Any, Any], Any]) -> Iterator[None]:
    """Keras's operations divide by `divide`, which is given their own division first.

    That of Keras 3.15 asks in a `tf.cond` whether the divisor of `tf.IndexedSlices` has a zero, and
    there is no option or class by which to answer; optimizers ask it of what they divide by.
    """
    module = keras_backend.numpy
    before = module.divide
    module.divide = functools.partial(divide, before)
    try:
        yield
    finally:
        module.divide = before


def adopt_optimizer(optimizer: Any, strategy: tf.distribute.Strategy) -> None:
    """Ties an optimizer to `strategy`, also one that was made before the scope was entered.

    Keras remembers `tf.distribute.get_strategy()` when the optimizer is constructed and updates
    variables through it; there is no public way to say it later.
    """
    optimizer._distribution_strategy = strategy


def compiled_losses(model: keras.Model) -> list[keras.losses.Loss]:
    """The `Loss` objects that `model.compile(loss=...)` made or was given.

    `model.loss` holds what the user wrote (a name, a function, a nest of them); the objects that
    are called live in the compiled loss alone.
    """
    compiled = getattr(model, "_compile_loss", None)
    flat = getattr(compiled, "_flat_losses", None) or []
    return [entry[1] for entry in flat if isinstance(entry[1], keras.losses.Loss)]


def layers_of(model: keras.Model) -> list[keras.layers.Layer]:
    """All layers of `model`, those inside other layers too."""
    return list(model._flatten_layers())


def build_all(model: keras.Model, x: Any, y: Any) -> None:
    """Makes the variables of a model, its metrics and its optimizer, as the first batch would.

    Args:
        model: compiled.
        x: `keras.KerasTensor`s of a batch.
        y: the same.
    """
    model._symbolic_build(data_batch=(x, y))


def functional_of(model: keras.Model) -> Any:
    """The functional model that a Sequential or functional `model` is, or None of another.

    None too of a functional one whose `call` is its class's own.
    """
    functional = model._functional if isinstance(model, keras.Sequential) else model
    if not hasattr(functional, "_nodes_by_depth"):
        return None
    return functional if type(functional).call is Functional.call else None


def run_function(function: keras.Function, inputs: list[Any], training: Any) -> Any:
    """What a Function gives, whose layers are told whether they train, as a functional model does.

    `Function.call` passes nothing on to the layers.
    """
    return function._run_through_graph(
        inputs, operation_fn=lambda operation: operation_fn(operation, training=training)
    )


def graph_nodes(model: keras.Model) -> list[Any]:
    """Every call of a layer that a Sequential or functional model is made of.

    A layer knows also those of its calls that are in other models.
    """
    return [node for nodes in model._nodes_by_depth.values() for node in nodes]


def loss_trackers(model: keras.Model) -> list[keras.metrics.Mean]:
    """The metrics in which a model of several outputs keeps the loss of each."""
    return list(getattr(getattr(model, "_compile_loss", None), "metrics", ()))


def compiled_metrics(model: keras.Model) -> list[keras.metrics.Metric]:
    """The metrics of `(y_true, y_pred)` that `model.compile(metrics=...)` was given.

    `model.metrics` holds also those that a custom step updates with values of its own.
    """
    compiled = getattr(model, "_compile_metrics", None)
    return list(compiled.metrics) if compiled is not None else []


def loss_tracker(model: keras.Model) -> keras.metrics.Mean | None:
    """The metric in which Keras's steps keep the mean loss; `model.metrics` names it only."""
    return getattr(model, "_loss_tracker", None)


def keras_mask(tensor: Any) -> Any:
    """The mask Keras hangs on a layer's output or on losses, or None."""
    return getattr(tensor, "_keras_mask", None)


def set_keras_mask(tensor: Any, mask: Any) -> None:
    """Hangs a mask on losses: Keras's reductions leave out what it does not hold."""
    tensor._keras_mask = mask


def is_keras_function(fn: Any) -> bool:
    """Whether `fn` is one of the functions `keras.Model` hands to `strategy.run`.

    `train_step` and `test_step` are bound methods of the model; `predict` passes a closure of
    Keras's trainer module.
    """
    if isinstance(getattr(fn, "__self__", None), keras.Model):
        return getattr(fn, "__name__", "") in ("train_step", "test_step")
    return str(getattr(fn, "__module__", "")).startswith("keras.")


def variable_path(name: str | None) -> str:
    """The Keras path of the variable that is being made now, such as ``"mlp/dense/kernel"``."""
    return "/".join(part for part in (current_path(), name or "variable") if part)


def layers_being_built() -> tuple[keras.layers.Layer, ...]:
    """The layers inside whose `build` we are, the innermost last."""
    entries = global_state.get_global_attribute("name_scope_stack") or []
    return tuple(e.caller for e in entries if isinstance(e.caller, keras.layers.Layer))


def set_initial_epoch(model: keras.Model, epoch: int) -> None:
    """Makes the running `fit` start at `epoch`, as Keras's BackupAndRestore does."""
    model._initial_epoch = epoch


class Caller(NamedTuple):
    """A `Model` method that asks for its data: ``"fit"``, ``"evaluate"`` or ``"predict"``.

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
    frame = sys._getframe(1)
    while frame is not None and not _module(frame).startswith("keras."):
        frame = frame.f_back  # type: ignore[assignment]
    if frame is None or frame.f_code.co_name != "__init__":  # of Keras's iterator over an epoch
        return None
    epoch = frame.f_locals.get("self")
    threads = getattr(getattr(epoch, "data_adapter", None), "enqueuer", None)
    while frame is not None and _module(frame).startswith("keras."):
        if frame.f_code.co_name in ("fit", "evaluate", "predict"):
            model = frame.f_locals.get("self")
            if isinstance(model, keras.Model):
                given = frame.f_locals.get
                limits = tuple(given(n) for n in ("steps_per_epoch", "validation_steps", "steps"))
                method, callbacks = frame.f_code.co_name, given("callbacks")
                begun = given("epoch_iterator") is not None or _fits(model, frame.f_back)
                return Caller(model, method, callbacks, threads, epoch, limits, begun)
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _fits(model: keras.Model, frame: Any) -> bool:
    """Whether `frame` was called, by whatever way, from a `fit` of `model`."""
    while frame is not None:
        if frame.f_code.co_name == "fit" and frame.f_locals.get("self") is model:
            return True
        frame = frame.f_back
    return False


def compiling_model() -> keras.Model | None:
    """The model inside whose `compile` we are.

    A model on a mesh must be known before its first batch, and the metrics that `compile` makes
    are the last thing of it that a strategy sees.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "compile" and _module(frame).startswith("keras."):
            model = frame.f_locals.get("self")
            return model if isinstance(model, keras.Model) else None
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _module(frame: Any) -> str:
    return str(frame.f_globals.get("__name__", ""))


def begin_again(threads: Any) -> bool:
    """Lets the threads of a `PyDataset`, stopped after a look at its first batch, begin anew.

    Keras 3.15 keeps what they have read by then for the next pass, which begins with the first
    batch all the same: up to ten batches would come twice, and as many of the last ones never.

    Args:
        threads: of `Caller`; stopped, and perhaps started again, since.

    Returns:
        False when the dataset has no end: its threads go on where they were, and lose nothing.
    """
    if threads.py_dataset.num_batches is None:
        return False
    while not threads.ready_queue.empty():
        threads.ready_queue.get_nowait()
    return True


def array_pipeline(dataset: tf.data.Dataset) -> tuple[tf.data.Dataset, list[Any]] | None:
    """Takes the dataset that Keras makes of in-memory arrays apart.

    Keras gathers every row of a global batch and would leave the choosing of rows for later. To
    gather only our own, the indices must be cut before they are used, and `tf.data` has no public
    way to insert a step into a dataset that exists.

    Returns:
        The innermost dataset, of `(row indices, arrays)` pairs, and the functions mapped over it
        in order (the first is Keras's gather); None when `dataset` is not of that shape.
    """
    functions: list[Any] = []
    node = dataset
    while not type(node).__name__.startswith("_ZipDataset"):
        mapped = getattr(node, "_map_func", None)
        if mapped is not None:
            functions.insert(0, mapped._func)
        elif type(node).__name__ not in ("_PrefetchDataset", "_OptionsDataset"):
            return None
        node = getattr(node, "_input_dataset", None)
        if node is None:
            return None
    if not functions or getattr(functions[0], "__name__", "") != "grab_batch":
        return None
    return node, functions
