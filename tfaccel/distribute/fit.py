"""What every data-parallel strategy of tfaccel does for `keras.Model.fit`.

`KerasFit` goes before a `tf.distribute.Strategy`, `KerasFitExtended` before its Extended. They
override public methods of the two (and two hooks that TensorFlow names for subclasses), and
nothing of Keras. docs/changed_in_keras.md lists all that is changed, and docs/architecture.md shows
the way of a batch.
"""

from __future__ import annotations

import contextlib
import weakref
from typing import Any

import keras
import tensorflow as tf

from tfaccel import deprecated
from tfaccel.distribute import (
    _private,
    accumulation,
    build,
    custom_loops,
    dataset_consistency,
    default_strategy,
    layer_state,
    multi_step,
    padding,
    scope,
    step,
    sync_points,
)
from tfaccel.distribute.adapt import adapt
from tfaccel.distribute.batch_sharding import Placement
from tfaccel.distribute.batches import (
    Batches,
    Sharded,
    ShardedWithEmpty,
    absent_to_none,
    shard_host_batch,
)
from tfaccel.distribute.check import Checks
from tfaccel.distribute.compression import Compression
from tfaccel.distribute.executions import Executions
from tfaccel.distribute.files import file_callbacks
from tfaccel.distribute.frequency import Frequency
from tfaccel.distribute.fused import fuse
from tfaccel.distribute.gradients import install
from tfaccel.distribute.keras_steps import RunsKerasSteps
from tfaccel.distribute.local_steps import use_local_updates
from tfaccel.distribute.loss import use_global_batch_losses
from tfaccel.distribute.multi_step import MultiStepBatches
from tfaccel.distribute.optimizer import optimizers_of, reduce_first
from tfaccel.distribute.replica_options import ReplicaOptions
from tfaccel.distribute.scalar_metrics import weight_scalar_metrics
from tfaccel.distribute.stateful_layers import ReplicaLocalAssign, aggregate_states
from tfaccel.distribute.variable_conversion import NumericConversion, Sum
from tfaccel.errors import InputError, StrategyError


class KerasFit(RunsKerasSteps):
    """Mixin for a `tf.distribute.Strategy`.

    Attributes:
        used: whether anything has run under this strategy.
        gradient_compression: how gradients are sent; None as they are.
        frequency: how often the replicas communicate.
        integer: the integers that replicas can sum.
        partial_batch: what becomes of a batch with fewer rows than the first: ``"exact"`` (trained
            as it is), ``"pad"`` or ``"drop"`` (see `tfaccel.distribute.padding`).
        executions: how many steps run in one call, of static batches; None for one at a time.
        check: whether the first step of a model is compared with one device's: ``"auto"`` for
            models with custom parts, ``"always"`` or ``"off"``.
    """

    extended: Any
    integer = tf.int64
    partial_batch = "exact"
    used = False
    check = "auto"
    gradient_compression: Compression | None = None
    frequency = Frequency()
    executions: Executions | None = None

    def _set_options(self, options: ReplicaOptions | None) -> None:
        options = options or ReplicaOptions()
        self.frequency, self.gradient_compression, self.check = (
            options.frequency,
            options.gradient_compression,
            options.check,
        )
        if options.partial_batch is not None:
            self.partial_batch = options.partial_batch

    @property
    def placement(self) -> Placement:
        """Which of all replicas run in this process."""
        return Placement(workers=1, rank=0, local=len(self.extended.worker_devices))

    @property
    def num_replicas_in_sync(self) -> int:
        """The number of replicas.

        Inside a Keras step, which runs the one-device program, it is 1 for Keras, and what it is
        for the user's own code, which may gather over replicas by hand. For TensorFlow
        (`tf.nn.scale_regularization_loss`) it is what it is in a step that was found to be written
        in TensorFlow's way. For a loss in a loop outside of replicas, which is that of a whole
        batch, it is 1.
        """
        if step.on_one_device():
            return 1
        if (ctx := step.current()) is not None:
            library = _private.calling_library()
            if library == "keras" or (library and not ctx.next_gradient_is_summed):
                return 1
        elif tf.distribute.in_cross_replica_context() and _private.loss_asks():
            return 1
        return int(self.extended._num_replicas_in_sync)

    def scope(self) -> Any:
        """As TensorFlow's; a model that Keras is about to build under it is made ready first."""
        default_strategy.delegate_default_strategy()
        install()
        if (model := _private.building_model()) is not None:
            scope.check(model, self)
            build.build_from_steps(model, self)
        return super().scope()  # type: ignore[misc]

    def experimental_distribute_dataset(self, dataset: Any, options: Any = None) -> Any:
        """Distributes a dataset; one that `Model.fit` asks for, in tfaccel's way.

        Each of its global batches is split by rows, one part for each replica. A script of its own
        that calls this gets what TensorFlow's strategy gives.

        Args:
            dataset: a `tf.data.Dataset` of global batches, the same on every worker.
            options: a `tf.distribute.InputOptions`.

        Raises:
            InputError: when auto-sharding is off and there is more than one worker.
            ScopeError: when a part of the model was made under another strategy.
        """
        caller = _private.calling_model()
        if caller is None:
            return super().experimental_distribute_dataset(dataset, options)  # type: ignore[misc]
        model, self.used = caller.model, True
        scope.check(model, self)
        build.for_caller(caller, dataset.element_spec, self)
        self._refuse_unsharded(dataset)
        self._refuse_stateful(model)
        if caller.method == "fit" and not caller.validates:
            file_callbacks.warn_of_backups(caller.callbacks)
        self._prepare_callbacks(caller.callbacks)
        if self.frequency.replicas_diverge:
            sync_points.synchronize_before_saving(caller.callbacks, lambda: self.synchronize(model))
            self.synchronize(model)
        # What is evaluated or predicted counts to the last row.
        trains = caller.method == "fit" and not caller.validates
        partial_batch = "pad" if self.partial_batch == "drop" and not trains else self.partial_batch
        if self.executions is not None:
            possible = caller.method != "predict" and caller.threads is None
            possible = possible and multi_step.has_static_shape(dataset.element_spec)
            if self.executions.prepare(caller, possible) > 1:
                return MultiStepBatches(dataset, self.placement, partial_batch)
        own = has_custom_step(model)
        multiples = own or self._in_proportion(model, trains)
        devices, threads = self.extended.worker_devices, caller.threads
        all_gather = self.gather_numbers if self.placement.workers > 1 else None
        length = dataset_consistency.length_of(dataset, getattr(caller.epoch, "num_batches", None))
        if all_gather is not None:
            dataset_consistency.check_equal(dataset, length, all_gather)
        given = (partial_batch, threads, multiples, not own, all_gather, length)
        return Batches(dataset, self.placement, devices, *given)

    def synchronize(self, model: keras.Model) -> None:
        """Makes all replicas hold the same state of `model` and its optimizers.

        It changes nothing under options that keep replicas equal (the default). Under
        `gradient_accumulation="local"` or `local_steps`, call it after `train_on_batch` and before
        you save the model or read its weights; every worker must call. `fit`, `evaluate` and
        `predict` do so by themselves.

        Args:
            model: a model that is trained under this strategy.
        """
        if self.frequency.gradient_accumulation == "local":
            for optimizer in optimizers_of(model):
                accumulation.synchronize(optimizer, self)
        if self.frequency.local_steps > 1:
            self.averaging(model).synchronize()

    settle = deprecated.method("settle", "synchronize")

    def run(self, fn: Any, args: Any = (), kwargs: Any = None, options: Any = None) -> Any:
        """Runs `fn` on every replica; a step of a Keras model gets what this module gives."""
        self.used = True
        if not _private.is_keras_function(fn):
            if any(isinstance(arg, (Sharded, ShardedWithEmpty)) for arg in args):
                raise StrategyError(
                    f"tfaccel: fit runs {fn}, expected a plain method train_step or test_step of "
                    "the model; take the decorator off it (fit makes a tf.function of it itself)."
                )
            layers = custom_loops.prepare(fn, self).layers
            alone = self.placement.replicas == 1 or self.frequency.local_steps > 1
            with contextlib.nullcontext() if alone else layer_state.averaged(layers):
                return super().run(fn, args, kwargs, options)  # type: ignore[misc]
        (batch,), given = args, None
        model = getattr(fn, "__self__", None)
        if not isinstance(batch, (Sharded, ShardedWithEmpty)):
            given = batch
            trains = getattr(fn, "__name__", "") == "train_step"
            may = model is not None and (
                has_custom_step(model) or self._in_proportion(model, trains)
            )
            batch = self._shard(batch, may)
        batch = batch._replace(data=absent_to_none(batch.data))
        if model is None:
            return self.run_predict_step(fn, batch, given, kwargs, options)
        self._prepare(model)
        if getattr(fn, "__name__", "") == "train_step":
            self._check(model, fn)
        return self.run_step(model, fn, batch, self.checks.reductions(model), None, kwargs, options)

    def _check(self, model: keras.Model, fn: Any) -> None:
        """Compares the first step with one device's, where that can be told."""
        if self._compares:
            self.checks.first_step(self, model, fn)

    @property
    def _compares(self) -> bool:
        return self.placement.replicas > 1 and not isinstance(self, tf.distribute.TPUStrategy)

    def _in_proportion(self, model: keras.Model, trains: bool) -> bool:
        """Whether parts of a batch in proportion may be split so for steps of Keras's own.

        A part that only happens to have a multiple of rows (a table beside the rows) would be split
        too: the first-step check tells.
        """
        may = trains and self._compares and self.check != "off"
        return may or self.checks.in_proportion(model)

    @property
    def checks(self) -> Checks:
        """The first-step checks of this strategy."""
        found: Checks = vars(self).setdefault("_checks", Checks(self.check))
        return found

    def shard(self, batch: Any) -> Sharded | ShardedWithEmpty:
        """Shards one global batch of host tensors over our replicas."""
        return shard_host_batch(batch, self.placement)

    def min_over_workers(self, number: int) -> int:
        """The least of the workers' numbers; every worker must call."""
        return min(numbers[0] for numbers in self.gather_numbers([number]))

    def gather_numbers(self, numbers: list[int]) -> list[list[int]]:
        """The numbers of every worker, in the order of their ranks; every worker must call."""
        return [numbers]

    def _shard(self, batch: Any, multiples: bool) -> Sharded | ShardedWithEmpty:
        """Shards a global batch; one that `tf.distribute` has sharded already stays as it is."""
        leaves = tf.nest.flatten(batch)
        if any(isinstance(leaf, tf.distribute.DistributedValues) for leaf in leaves):
            return ShardedWithEmpty(
                batch, None
            )  # nobody says how many rows each replica has: maybe none
        return shard_host_batch(batch, self.placement, self.partial_batch, multiples)

    def _refuse_unsharded(self, dataset: tf.data.Dataset) -> None:
        policy = dataset.options().experimental_distribute.auto_shard_policy
        if policy == tf.data.experimental.AutoShardPolicy.OFF and self.placement.workers > 1:
            raise InputError(
                "tfaccel: the dataset's auto_shard_policy is OFF, so every worker would train on "
                "the same rows; expected DATA (the default: each worker takes its rows of every "
                "global batch). Leave the policy unset, and let every worker make the same dataset."
            )

    def _refuse_stateful(self, model: keras.Model) -> None:
        if self.placement.replicas == 1:
            return
        for layer in _private.layers_of(model):
            if isinstance(layer, keras.layers.RNN) and layer.stateful:
                raise StrategyError(
                    f"tfaccel: layer {layer.name!r} is stateful, with a state for each row of the "
                    f"global batch, and {self.placement.replicas} replicas have parts of it, "
                    "expected stateful=False; or use strategy 'one_device' or 'model_parallel'."
                )

    def _prepare_callbacks(self, callbacks: Any) -> None:
        """Called with the callbacks of a `fit` before any of them runs."""

    def _prepare(self, model: keras.Model) -> None:
        """Checks that `model` is ours, and adapts its optimizers and losses."""
        scope.check(model, self)
        self._refuse_stateful(model)
        if model.jit_compile and any("CPU" in d.upper() for d in self.extended.worker_devices):
            raise StrategyError(
                "tfaccel: jit_compile=True was requested on CPU replicas, where XLA has no "
                "all-reduce; compile with jit_compile='auto', or use strategy 'one_device'."
            )
        for optimizer in optimizers_of(model):
            if not isinstance(self, tf.distribute.TPUStrategy):  # XLA fuses by itself
                fuse(optimizer)
            if self.frequency.local_steps > 1:
                use_local_updates(optimizer, self)
                continue
            reduce_first(optimizer, self)
            if self.frequency.gradient_accumulation == "local":
                accumulation.accumulate_locally(optimizer)
        if self.gradient_compression is not None and getattr(model, "optimizer", None) is not None:
            self.gradient_compression.prepare(
                model.optimizer, list(model.trainable_variables), self
            )
        install()
        use_global_batch_losses(model)
        aggregate_states(model)
        weight_scalar_metrics(model)
        padding.ignore_padding(model)
        if self.frequency.replicas_diverge:
            sync_points.synchronize_after_epochs(model, self.synchronize)


def has_custom_step(model: keras.Model) -> bool:
    """Whether a step of `model` is not Keras's, and may know parts of a batch of its own kind."""
    own = ("train_step", "test_step", "predict_step")
    return any(getattr(type(model), name) is not getattr(keras.Model, name) for name in own)


class KerasFitExtended:
    """Mixin for a `tf.distribute.StrategyExtended`."""

    _seeds: list[Any]

    def seeds(self) -> list[Any]:
        """The states of the Keras seed generators made under this strategy."""
        return [seed for ref in getattr(self, "_seeds", []) if (seed := ref()) is not None]

    def _use_merge_call(self) -> bool:
        # Inside a tf.function no replica pauses for another: collectives meet by themselves, and
        # so updates may stand in a `cond` (gradient accumulation, loss scaling:
        # https://github.com/keras-team/keras/issues/17429). Eagerly, replicas run one after the
        # other and must pause; a loop outside of replicas has nobody to pause.
        return bool(tf.executing_eagerly()) and not _private.asked_without_replica()

    def _create_variable(self, next_creator: Any, **kwargs: Any) -> Any:
        if step.current() is not None and not tf.executing_eagerly():
            raise StrategyError(
                f"tfaccel: variable {kwargs.get('name')!r} is made inside a step, where each "
                "replica would make its own, expected all variables before the first step; make "
                "it in __init__ or build, or call what makes it once before fit."
            )
        if not tf.executing_eagerly() and callable(kwargs.get("initial_value")):
            # Made in a function, as by a metric at its first update: there TensorFlow would give it
            # its value in a `cond`, where no replica can see another's.
            with tf.init_scope():
                if tf.executing_eagerly():
                    return self._create_variable(next_creator, **kwargs)
        if kwargs.get("aggregation") == tf.VariableAggregation.ONLY_FIRST_REPLICA:
            # Keras says so of its counters (iterations, learning rate). Every replica counts the
            # same, and to ask the first one would pause the others.
            kwargs["aggregation"] = tf.VariableAggregation.NONE
            custom_loops.adopt_new_optimizer()
        if kwargs.get("aggregation") == tf.VariableAggregation.SUM:
            # Metric states are summed when they are read; before Keras 3.10 they did not say when.
            kwargs["synchronization"] = tf.VariableSynchronization.ON_READ
        none = kwargs.get("aggregation") in (None, tf.VariableAggregation.NONE)
        if none and kwargs.get("synchronization") == tf.VariableSynchronization.ON_READ:
            # TensorFlow could not read it outside of a replica.
            kwargs["synchronization"] = tf.VariableSynchronization.AUTO
        variable = super()._create_variable(next_creator, **kwargs)  # type: ignore[misc]
        if kwargs.get("aggregation") == tf.VariableAggregation.MEAN:
            adapt(variable, ReplicaLocalAssign)
        adapt(variable, NumericConversion)
        if kwargs.get("aggregation") == tf.VariableAggregation.SUM:
            adapt(variable, Sum)
        if (model := _private.compiling_model()) is not None:
            _private.set_strategy(model, self._container_strategy())  # type: ignore[attr-defined]
        if str(kwargs.get("name", "")).endswith("seed_generator_state"):
            self._seeds = [*getattr(self, "_seeds", []), weakref.ref(variable)]
        return variable
