"""Every private TensorFlow and Keras name that tfaccel uses, each with its reason.

Seen with TensorFlow 2.21 and Keras 3.15. `tests/distribute/test_private.py` watches each one:
when a release moves a name, that test says which and this file is the one place to fix.
"""

from __future__ import annotations

import contextlib
import functools
import gc
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

# What has `fit` and is no `keras.Model`: a layer of Keras's trainer class, which is not public.
from keras.src.backend.tensorflow.trainer import TensorFlowTrainer
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

# As CollectiveAllReduceExtended, of the other two strategies with replicas.
from tensorflow.python.distribute.mirrored_strategy import MirroredExtended
from tensorflow.python.distribute.tpu_strategy import TPUExtended

# What a replica is handed, and how tf.function sees it. An empty one stands for None in a batch.
# A variable of several replicas, for what it is read from outside of them.
from tensorflow.python.distribute.values import DistributedVariable, PerReplica, PerReplicaSpec

# `tf.random.set_seed` has no getter.
from tensorflow.python.eager.context import global_seed

# Whether any tape records; public is only the tape that one holds.
from tensorflow.python.eager.record import could_possibly_record

# Every random operation and every dataset asks `random_seed.get_seed` for its seeds. One that has
# none, in a program that has none, is told so and draws from the clock; there is no public way to
# give such operations a seed that leaves the order of those with a seed of their own alone.
from tensorflow.python.framework import op_def_registry, random_seed

# Which operations of a function TensorFlow runs in the order of their making.
from tensorflow.python.framework.auto_control_deps import (
    _get_resource_inputs as _resources_of,
)
from tensorflow.python.framework.auto_control_deps import (
    op_is_stateful,
)

# Whether oneDNN computes is decided when TensorFlow is imported, and told nowhere.
from tensorflow.python.util._pywrap_util_port import IsMklEnabled

__all__ = [
    "LARGEST_CONSTANT",
    "BeforeClipping",
    "BeforeSaving",
    "BuildsFromSteps",
    "Caller",
    "CollectiveAllReduce",
    "CollectiveAllReduceExtended",
    "DatasetIterator",
    "DynamicRows",
    "MirroredExtended",
    "PerReplica",
    "ReadByValue",
    "StaticRows",
    "TPUExtended",
    "accumulation",
    "adam_slots",
    "additional_losses",
    "adopt_optimizer",
    "all_gather",
    "all_to_all",
    "array_pipeline",
    "asked_without_replica",
    "batch_of_step",
    "build_all",
    "building_model",
    "calling_library",
    "calling_model",
    "compiled_losses",
    "compiled_metrics",
    "compiling_model",
    "division_replaced",
    "exchange_group_size",
    "first_replica",
    "forget_traces",
    "function_like",
    "functional_of",
    "global_seed",
    "global_seed_generator",
    "graph_nodes",
    "handle",
    "is_called_by_keras",
    "is_function",
    "is_keras_function",
    "is_onednn_enabled",
    "is_ordered_by_trace",
    "is_recording",
    "is_trainer",
    "keras_mask",
    "layers_being_built",
    "layers_of",
    "leave_unordered",
    "live_trainers_and_optimizers",
    "local_replica_index",
    "loss_asks",
    "loss_tracker",
    "loss_trackers",
    "metric_function",
    "metrics_in",
    "operations_replaced",
    "optimizer_being_made",
    "optimizer_key",
    "own_states",
    "pack_variables",
    "predicting_model",
    "read_here",
    "reserve_collective_keys",
    "restart_threads",
    "run_after",
    "run_function",
    "seed_unseeded",
    "set_initial_epoch",
    "set_keras_mask",
    "set_strategy",
    "set_tf_variable",
    "strategy_at_compile",
    "sum_additional_losses",
    "tf_variable",
    "trained_by",
    "use_ring_reduce",
    "variable_path",
    "wrapped_function",
]


class DynamicRows(PerReplica):  # type: ignore[misc]
    """A PerReplica batch whose number of rows `tf.function` does not look at.

    A step is then traced once for all batch sizes and sees `None` rows, as with the iterator of
    a dataset on one device. TensorFlow asks a value for its `_type_spec`.
    """

    @property
    def _type_spec(self) -> PerReplicaSpec:
        return PerReplicaSpec(*(_dynamic_rows(tf.type_spec_from_value(v)) for v in self.values))


class StaticRows(PerReplica):  # type: ignore[misc]
    """A PerReplica batch with a static shape, which a batch of another size does not change.

    Keras makes its functions, one within the other, with `reduce_retracing`: where a second shape
    comes, `tf.function` asks the two specs for one that fits both, and traces with unknown sizes
    from then on. These have none.
    """

    @property
    def _type_spec(self) -> PerReplicaSpec:
        return _StaticSpec(*(tf.type_spec_from_value(v) for v in self.values))


class _StaticSpec(PerReplicaSpec):  # type: ignore[misc]
    @property
    def value_type(self) -> type:
        return StaticRows

    def _from_components(self, components: Any) -> StaticRows:
        return StaticRows(components)

    def most_specific_common_supertype(self, others: Any) -> _StaticSpec | None:
        return self if all(self == other for other in others) else None


class ReadByValue:
    """Mixin for a resource variable whose readers shall call `value()`.

    An eager operation reads a resource variable by the handle it finds as `_handle`, and asks
    nobody. Where `reads_by_value()` holds it finds none, and converts the variable as any other
    object.
    """

    _held: Any

    def reads_by_value(self) -> bool:
        """Whether operations shall not read by themselves now."""
        raise NotImplementedError

    @property
    def _handle(self) -> Any:
        return None if self.reads_by_value() else self._held

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


class BuildsFromSteps:
    """Mixin for a model whose variables are made before its steps run, and not as Keras does it.

    Under any strategy Keras calls the model on symbolic inputs in `_symbolic_build`, which a model
    without a `call` cannot stand; there is no public way to leave that out.
    """

    def build_for(self, method: str, batch: Any, failed: bool) -> bool:
        """Makes the variables of a step.

        Args:
            method: `fit`, `evaluate`, `train_on_batch` or `test_on_batch`.
            batch: what Keras would build from.
            failed: whether Keras has tried, and could not.

        Returns:
            Whether it has; else Keras tries, or its error stands.
        """
        raise NotImplementedError

    def _symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        frame: Any = sys._getframe(1)
        while frame is not None and frame.f_code.co_name == "_maybe_symbolic_build":
            frame = frame.f_back
        method = frame.f_code.co_name if frame is not None else ""
        if self.build_for(method, data_batch, False):
            return
        try:
            super()._symbolic_build(iterator, data_batch)  # type: ignore[misc]
        except Exception:
            if not self.build_for(method, data_batch, True):
                raise


def seed_unseeded(pair: Callable[[], tuple[int, int] | None] | None) -> None:
    """Gives seeds to the random operations that have none in a program without a global seed.

    Args:
        pair: called for each such operation as it is made; returns its two seeds, or None to leave
            it unseeded. None for TensorFlow's own way.
    """
    plain = getattr(random_seed.get_seed, "__wrapped__", random_seed.get_seed)

    @functools.wraps(plain)
    def get_seed(op_seed: Any) -> Any:
        unset = global_seed() if tf.executing_eagerly() else tf.compat.v1.get_default_graph().seed
        found = pair() if pair is not None and op_seed is None and unset is None else None
        return plain(op_seed) if found is None else found

    random_seed.get_seed = plain if pair is None else get_seed


def is_pure(operation: str) -> bool:
    """Whether an operation of this type has no state, calls nothing and takes plain tensors alone.

    TensorFlow tells what its operations are nowhere else: seen in 2.21, watched by
    tests/model_parallel/test_private.py.
    """
    known = op_def_registry.get(operation)
    if known is None or known.is_stateful:
        return False
    handles = (tf.resource.as_datatype_enum, tf.variant.as_datatype_enum)
    if any(each.type in handles for each in (*known.input_arg, *known.output_arg)):
        return False
    return not any(each.type in ("func", "list(func)") for each in known.attr)


def is_onednn_enabled() -> bool:
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


def tf_variable(variable: Any) -> Any:
    """The TensorFlow variable of a `keras.Variable`, or a TensorFlow variable itself.

    None before it is made. The public `value` is a tensor of another dtype inside a layer of mixed
    precision, and the replica's own inside a replica.
    """
    return variable._value if isinstance(variable, keras.Variable) else variable


def own_states(owner: Any) -> list[Any]:
    """The `keras.Variable`s that a layer keeps without a gradient, or a metric, itself.

    Public are only those of all that is inside, with the states of seed generators.
    """
    if isinstance(owner, keras.metrics.Metric):
        return list(owner._variables)
    return list(owner._non_trainable_variables)


def metrics_in(metric: Any) -> list[keras.metrics.Metric]:
    """The metrics that a metric is made of, or those of a compiled container."""
    return list(getattr(metric, "_metrics", ()))


def _dynamic_rows(spec: Any) -> Any:
    shape = spec.shape
    if shape.rank in (None, 0):
        return spec
    shape = [None, *shape[1:]]
    if isinstance(spec, tf.RaggedTensorSpec):
        return tf.RaggedTensorSpec(shape, spec.dtype, spec.ragged_rank, spec.row_splits_dtype)
    return type(spec)(shape, spec.dtype)


def reserve_collective_keys(strategy: tf.distribute.Strategy) -> None:
    """Gives `strategy` collective keys of its own; call it before its Extended is made.

    All strategies of a process start from the same keys, so that the second one's first message
    meets what is left of the first one's ("Shape mismatch in the collective instance"). Workers
    make their strategies in the same order, and so agree.
    """
    strategy._collective_key_base = next(_key_bases)


_key_bases = itertools.count(1 << 20, 1 << 10)


def use_ring_reduce(extended: MirroredExtended) -> None:
    """Makes a `MirroredStrategy` reduce in TensorFlow's rings; call it before anything is reduced.

    Inside a function it reduces with collectives of its own, whatever `cross_device_ops` it was
    given, and those are NCCL's on GPUs (but for logical ones, which NCCL refuses).
    """
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=tf.distribute.experimental.CommunicationImplementation.RING
    )
    devices = extended.worker_devices
    collectives = CollectiveAllReduce(devices, len(devices), options, extended._collective_keys)
    extended._communication_options = options
    extended._collective_ops = extended._cross_device_ops = collectives


def pack_variables(strategy: tf.distribute.TPUStrategy) -> None:
    """Lets a function capture one handle for all copies of a variable.

    TensorFlow's constructor does so, and makes an Extended of its own, which is why ours goes
    around it.
    """
    strategy._enable_packed_variable_in_eager_mode = True


def exchange_group_size() -> int:
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
    collectives = getattr(extended, "_collective_ops", getattr(extended, "_cross_device_ops", None))
    launchers = getattr(collectives, "_launchers", None)
    return launchers[context._replica_id] if launchers else None


@contextlib.contextmanager
def division_replaced(divide: Callable[[Any, Any, Any], Any]) -> Iterator[None]:
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


def read_here(source: Any) -> Any:
    """What a gradient's source is read from where we are.

    Outside of `Strategy.run` a program reads one copy of a variable of several replicas, or a copy
    on the host of one of a mesh, and a tape records that. TensorFlow asks the variable itself for
    its handle, which one of replicas has in a replica only.
    """
    found = source._value if isinstance(source, keras.Variable) else source
    if getattr(found, "on_tape", None) is not None:
        return found.on_tape
    if isinstance(found, DistributedVariable) and tf.distribute.in_cross_replica_context():
        return found._get_on_device_or_primary()
    return source


def is_recording() -> bool:
    """Whether a tape of this thread may record what is computed now."""
    return bool(could_possibly_record())


def asked_without_replica() -> bool:
    """Whether an optimizer of Keras asks, outside of replicas, if it may pause the others.

    It would then call `merge_call` of the replica that it is in, and there is none. The question
    is `Extended._use_merge_call`, and `strategy_supports_no_merge_call` the public name that asks.
    """
    frame: Any = sys._getframe(2)
    asks = frame.f_code.co_name == "strategy_supports_no_merge_call"
    return bool(asks and tf.distribute.in_cross_replica_context())


def local_replica_index() -> int:
    """Which of this worker's replicas we are in; public is only its id among all, a tensor."""
    return int(tf.distribute.get_replica_context()._replica_id)


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


def wrapped_function(loss: keras.losses.Loss) -> tuple[Any, dict[str, Any]]:
    """The function that a loss is made of, and its options; None for a class with its own `call`.

    Keras wraps its own functions and those of a script in the same class.
    """
    return getattr(loss, "fn", None), dict(getattr(loss, "_fn_kwargs", None) or {})


def sum_additional_losses(model: keras.Model, summed: Callable[[Any], Any]) -> None:
    """Has `summed` make the number that one entry of `model.losses` adds to Keras's loss.

    Public is only `compute_loss`, which has summed all of them already. Keras's own number of an
    entry is its sum.
    """
    object.__setattr__(model, "_aggregate_additional_loss", summed)


def additional_losses(model: keras.Model) -> Any:
    """What makes that number now."""
    return getattr(model, "_aggregate_additional_loss", None)


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


def set_tf_variable(variable: keras.Variable, held: Any) -> None:
    """Makes a Keras variable, which stays the same object everywhere, hold another variable."""
    variable._value = held


def is_trainer(instance: Any) -> bool:
    """Whether `instance` is a layer with `fit`: a model, or of Keras's bare `Trainer`."""
    return isinstance(instance, keras.layers.Layer) and isinstance(instance, TensorFlowTrainer)


def set_strategy(model: Any, strategy: Any) -> None:
    """Makes `fit`, `evaluate` and `predict` of a model use `strategy`.

    Keras remembers the strategy in whose scope a model was constructed; public is only the reading.
    """
    model._distribute_strategy = strategy


def live_trainers_and_optimizers() -> tuple[list[Any], list[Any]]:
    """All that has `fit`, and all optimizers, of this process; Keras keeps no list of them."""
    optimizer, layer = keras.optimizers.Optimizer, keras.layers.Layer
    found: list[Any] = []
    relevant: dict[type, bool] = {}
    for each in gc.get_objects():
        cls = type(each)
        if (is_wanted := relevant.get(cls)) is None:
            is_wanted = relevant[cls] = issubclass(cls, (TensorFlowTrainer, optimizer))
        if is_wanted and hasattr(each, "_tracker"):  # one that is being made has none
            found.append(each)
    trainers = [each for each in found if isinstance(each, layer)]
    return trainers, [each for each in found if isinstance(each, optimizer)]


def strategy_at_compile(model: Any) -> Any:
    """The strategy that a model was constructed in; None for none, and `fit` takes the current."""
    return model._distribute_strategy


def global_seed_generator() -> keras.random.SeedGenerator | None:
    """What Keras's random operations without a seed draw from, or None before the first one."""
    return global_state.get_global_attribute("global_seed_generator")


def optimizer_key(optimizer: Any, variable: keras.Variable) -> Any:
    """By what `optimizer` knows a variable, in its dicts and sets; None where it cannot."""
    if tf_variable(variable) is None or not hasattr(optimizer, "_var_key"):
        return None
    return optimizer._var_key(variable)


def trained_by(optimizer: Any) -> list[Any]:
    """The variables that `optimizer` was built for; its public `variables` are its own."""
    return list(getattr(optimizer, "_trainable_variables", None) or ())


def forget_traces(function: Any) -> None:
    """Makes a `tf.function` trace anew when it is called next.

    Its traces hold the variables that it used then, and TensorFlow has no public way to drop them.
    `_clone` makes a function of the same options without traces.
    """
    if hasattr(function, "_clone"):
        vars(function).update(vars(function._clone(None)))


def is_function(fn: Any) -> bool:
    """Whether `fn` is a `tf.function` in which TensorFlow would run the replicas.

    Under XLA on GPUs each replica runs its own, with nothing to order.
    """
    return isinstance(fn, tf.types.experimental.PolymorphicFunction) and not fn._jit_compile


def function_like(function: Any, plain: Callable[..., Any]) -> Any:
    """A `tf.function` of `plain` with the options of another."""
    return function._clone(python_function=plain)


def is_ordered_by_trace(op: tf.Operation) -> bool:
    """Whether an operation has side effects, and on no variable or other resource.

    When a function is traced to its end TensorFlow lets each such operation wait for the one that
    was made before it (`AutomaticControlDependencies`).
    """
    if not op_is_stateful(op) or op._control_flow_context is not None:
        return False
    return next(iter(_resources_of(op)), None) is None


def leave_unordered(graph: tf.Graph, operations: list[tf.Operation]) -> bool:
    """Lets operations of a function run, and wait for none by themselves.

    Args:
        graph: of the function, which is being traced.
        operations: of it, with side effects.

    Returns:
        False where TensorFlow orders nothing by itself, as in a graph that is no function's.
    """
    manager = getattr(graph, "experimental_acd_manager", None)
    if manager is None:
        return False
    for op in operations:
        manager.run_independently(op)
    return True


def run_after(op: tf.Operation, earlier: tf.Operation) -> None:
    """Lets an operation that is made already wait for an earlier one."""
    op._add_control_input(earlier)


def first_replica(strategy: tf.distribute.Strategy) -> int:
    """The number, among all, of the first replica of this process; public inside a replica only."""
    return int(strategy.extended._get_replica_id_in_sync_group(0))


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


def metric_function(metric: keras.metrics.Metric) -> Callable[[Any, Any], Any] | None:
    """The function that a metric averages, with its arguments bound; None for another kind.

    Where it returns one number for all rows, who averages it cannot say how many those were.
    """
    function = getattr(metric, "_fn", None)
    if function is None or not isinstance(metric, keras.metrics.MeanMetricWrapper):
        return None
    arguments = getattr(metric, "_fn_kwargs", None) or {}
    if not arguments:
        return function  # type: ignore[no-any-return]
    return functools.wraps(function)(functools.partial(function, **arguments))


def loss_tracker(model: keras.Model) -> keras.metrics.Mean | None:
    """The metric in which Keras's steps keep the mean loss; `model.metrics` names it only."""
    return getattr(model, "_loss_tracker", None)


def keras_mask(tensor: Any) -> Any:
    """The mask Keras hangs on a layer's output or on losses, or None."""
    return getattr(tensor, "_keras_mask", None)


def set_keras_mask(tensor: Any, mask: Any) -> None:
    """Hangs a mask on losses: Keras's reductions leave out what it does not hold."""
    tensor._keras_mask = mask


def is_called_by_keras() -> bool:
    """Whether Keras calls the method that asks: a step may be a function put on the instance."""
    return _module(sys._getframe(2)).startswith("keras.")


def is_keras_function(fn: Any) -> bool:
    """Whether `fn` is one of the functions `keras.Model` hands to `strategy.run`.

    `train_step` and `test_step` are bound methods of the model; `predict` passes a closure of
    Keras's trainer module.
    """
    if is_trainer(getattr(fn, "__self__", None)):
        return getattr(fn, "__name__", "") in ("train_step", "test_step")
    return str(getattr(fn, "__module__", "")).startswith("keras.")


def calling_library() -> str:
    """``"keras"`` or ``"tensorflow"``, which read the property that calls us for their own use.

    A replica context's `num_replicas_in_sync` reads the strategy's, for whoever asked it: then it
    is the caller of that who counts.

    Returns:
        An empty text for the user's code.
    """
    frame: Any = sys._getframe(2)
    if frame.f_code.co_name == "num_replicas_in_sync" and frame.f_back is not None:
        frame = frame.f_back
    package = _module(frame).partition(".")[0]
    return package if package in ("keras", "tensorflow") else ""


def loss_asks() -> bool:
    """Whether a loss of Keras reads the property that calls us, to divide itself by it.

    It does so in `scale_loss_for_distribution` wherever it is called. Keras's trainer reads the
    same property outside of replicas to know how many parts a gathered result has.
    """
    return _module(sys._getframe(2)).startswith("keras.src.losses.")


@contextlib.contextmanager
def operations_replaced(replace: Callable[[Any], list[tf.Tensor] | None]) -> Iterator[None]:
    """Lets `replace` say what is used in place of the outputs of each operation of a graph.

    Which operations a step is made of is known where a graph makes them, in `_create_op_internal`,
    and nowhere before; those of branches and loops are in graphs of their own. So the method of the
    class is replaced while a step is traced. A gradient asks the operation for its attributes,
    which must stay.

    Args:
        replace: called with each operation; returns tensors, or None to leave it.
    """
    graph: Any = tf.Graph
    plain = graph._create_op_internal

    def create(self: Any, *args: Any, **kwargs: Any) -> Any:
        op = plain(self, *args, **kwargs)
        with self.as_default():
            outputs = replace(op)
        return op if outputs is None else _Replaced(op, outputs)

    graph._create_op_internal = create
    try:
        yield
    finally:
        graph._create_op_internal = plain


class _Replaced:
    """An operation whose outputs are those of others."""

    def __init__(self, op: Any, outputs: list[tf.Tensor]) -> None:
        self._op, self.outputs = op, outputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._op, name)


def batch_of_step() -> Any:
    """The batch of the step that Keras is about to trace or run, as its trainer was given it.

    Inside the function a batch has no values. We read the local variable `data` of the function
    that takes batches and calls it.

    Returns:
        None when it is not `fit` or `train_on_batch` that calls.
    """
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "function" and _module(frame).endswith("tensorflow.trainer"):
            return frame.f_locals.get("data")
        frame = frame.f_back
    return None


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
            if is_trainer(model):
                given = frame.f_locals.get
                limits = tuple(given(n) for n in ("steps_per_epoch", "validation_steps", "steps"))
                method, callbacks = frame.f_code.co_name, given("callbacks")
                begun = given("epoch_iterator") is not None or _fits(model, frame.f_back)
                return Caller(model, method, callbacks, threads, epoch, limits, begun)
        frame = frame.f_back  # type: ignore[assignment]
    return None


def building_model() -> Any:
    """The model that is about to be built by Keras, seen from a strategy's `scope()`.

    `train_on_batch` asks a strategy for its scope, to build the model, before anything else.
    """
    frame = sys._getframe(2)
    if frame.f_code.co_name != "_maybe_symbolic_build" or not _module(frame).startswith("keras."):
        return None
    return frame.f_locals.get("self")


def predicting_model() -> Any:
    """The model whose predict function calls `strategy.run`; what it is given is a closure."""
    frame = sys._getframe(2)
    while frame is not None and not _module(frame).startswith("keras."):
        frame = frame.f_back  # type: ignore[assignment]
    model = frame.f_locals.get("self") if frame is not None else None
    return model if is_trainer(model) else None


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
            return model if is_trainer(model) else None
        frame = frame.f_back  # type: ignore[assignment]
    return None


def optimizer_being_made() -> keras.optimizers.Optimizer | None:
    """The optimizer inside whose constructor we are.

    Keras tells a strategy about variables alone, and an optimizer that no model was compiled with
    is seen nowhere else. Its counter is its first variable.
    """
    frame = sys._getframe(1)
    while frame is not None and not _module(frame).startswith("keras."):
        frame = frame.f_back  # type: ignore[assignment]
    while frame is not None and _module(frame).startswith("keras."):
        made = frame.f_locals.get("self")
        if frame.f_code.co_name == "__init__" and isinstance(made, keras.optimizers.Optimizer):
            return made
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _module(frame: Any) -> str:
    return str(frame.f_globals.get("__name__", ""))


def restart_threads(threads: Any) -> bool:
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
    gather only our own, the indices must be split before they are used, and `tf.data` has no public
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
