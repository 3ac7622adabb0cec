"""The behaviour of every data-parallel strategy of tfaccel in `keras.Model.fit`.

`KerasFit` goes before a `tf.distribute.Strategy`, `KerasFitExtended` before its Extended. They
override public methods of the two (and two hooks that TensorFlow provides for subclasses), and
nothing in Keras. docs/changed_in_keras.md lists all changes, and docs/architecture.md follows one
batch.
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
    batch_norm,
    batch_rows,
    custom_loops,
    dataset_consistency,
    layer_state,
    multi_step,
    per_worker,
    step,
    sync_points,
)
from tfaccel.distribute.batch_sharding import Placement
from tfaccel.distribute.batches import (
    Batches,
    shard_host_batch,
    shard_own_batch,
    sharded_by_tensorflow,
)
from tfaccel.distribute.compression import Compression
from tfaccel.distribute.custom_parts import has_custom_step
from tfaccel.distribute.first_step_check import Checks, kind_of
from tfaccel.distribute.fused import fuse
from tfaccel.distribute.gradients import install
from tfaccel.distribute.keras_steps import RunsKerasSteps
from tfaccel.distribute.keras_strategy import KerasStrategy
from tfaccel.distribute.local_steps import use_local_updates
from tfaccel.distribute.loss import use_global_batch_losses
from tfaccel.distribute.metric_weights import weight_metrics
from tfaccel.distribute.mixins import mix_in
from tfaccel.distribute.multi_step import MultiStepBatches
from tfaccel.distribute.optimizer import optimizers_of, reduce_first
from tfaccel.distribute.per_worker import PerWorkerBatches
from tfaccel.distribute.replica_options import ReplicaOptions
from tfaccel.distribute.stateful_layers import ReplicaLocalAssign, aggregate_states
from tfaccel.distribute.sync_frequency import Frequency
from tfaccel.distribute.variable_conversion import NumericConversion, Sum
from tfaccel.distribute.worker_activity import worker_activity
from tfaccel.errors import InputError, StrategyError


class KerasFit(KerasStrategy, RunsKerasSteps):
    """Mixin for a `tf.distribute.Strategy`.

    Attributes:
        gradient_compression: how gradients are sent; None for uncompressed.
        frequency: how often the replicas communicate.
        integer: the integer dtype that replicas can sum.
        partial_batch: how to handle a batch with fewer rows than the first: ``"exact"`` (trained
            unchanged), ``"pad"`` or ``"drop"`` (see `tfaccel.distribute.padding`).
        batch_norm: ``"synchronized"`` where every `BatchNormalization` normalises the global batch.
        input: ``"per_worker"`` where each worker passes its own part of every global batch.
        check: whether the first step of a model is compared with one device's: ``"auto"`` for
            models with custom parts, ``"always"`` or ``"off"``.
    """

    extended: Any
    integer = tf.int64
    partial_batch = "exact"
    batch_norm = "replica"
    input = "global"
    check = "auto"
    gradient_compression: Compression | None = None
    frequency = Frequency()

    def _set_options(self, options: ReplicaOptions | None) -> None:
        options = options or ReplicaOptions()
        self.frequency, self.gradient_compression, self.check = (
            options.frequency,
            options.gradient_compression,
            options.check,
        )
        self.batch_norm = options.batch_norm
        self.input = options.input
        if options.partial_batch is not None:
            self.partial_batch = options.partial_batch

    @property
    def placement(self) -> Placement:
        """Which of all replicas run in this process."""
        return Placement(workers=1, rank=0, local=len(self.extended.worker_devices))

    @property
    def num_replicas_in_sync(self) -> int:
        """The number of replicas.

        Inside a Keras step, which runs the one-device program, it is 1 for Keras, and the true
        number for the user's own code, which may gather over replicas explicitly. For TensorFlow
        (`tf.nn.scale_regularization_loss`) it is the true number in a step that was found to follow
        TensorFlow's convention. For a loss in a loop outside of replicas, which covers a whole
        batch, it is 1.
        """
        if step.on_one_device():
            return 1
        if (ctx := step.current()) is not None:
            library = _private.calling_library()
            if library == "keras" or (library and not ctx.next_gradient_is_summed):
                return 1
        elif tf.distribute.in_cross_replica_context() and _private.is_called_by_loss():
            return 1
        return int(self.extended._num_replicas_in_sync)

    def _check_data(self, model: keras.Model, dataset: tf.data.Dataset) -> None:
        self._refuse_unsharded(dataset)
        self._refuse_stateful(model)

    def _batches(self, caller: _private.Caller, dataset: tf.data.Dataset) -> Any:
        """Each global batch is split by rows, one part for each replica."""
        model = caller.model
        if self.frequency.replicas_diverge:
            sync_points.synchronize_before_saving(caller.callbacks, lambda: self.synchronize(model))
            self.synchronize(model)
        # Evaluation and prediction need every row.
        trains = caller.method == "fit" and not caller.validates
        partial_batch = "pad" if self.partial_batch == "drop" and not trains else self.partial_batch
        if self.steps_per_execution is not None:
            possible = caller.method != "predict" and caller.threads is None
            possible = possible and multi_step.has_static_shape(dataset.element_spec)
            if self.steps_per_execution.prepare(caller, possible) > 1:
                return MultiStepBatches(dataset, self.placement, partial_batch)
        custom = has_custom_step(model)
        multiples = custom or self._in_proportion(model, trains)
        devices, threads = self.extended.worker_devices, caller.threads
        all_gather = self.gather_numbers if self.placement.workers > 1 else None
        batch_args = (partial_batch, threads, multiples, not custom)
        if self.input == "per_worker" and all_gather is not None:
            per_worker.agree_on_length(caller.epoch, all_gather)
            return PerWorkerBatches(
                dataset, self.placement, devices, *batch_args, all_gather, caller.inspected
            )
        length = dataset_consistency.length_of(dataset, getattr(caller.epoch, "num_batches", None))
        if all_gather is not None:
            dataset_consistency.check_equal(dataset, length, all_gather)
        py_dataset = None if all_gather is None else batch_rows.adapter_of(caller)
        return Batches(
            *(dataset, self.placement, devices, *batch_args, all_gather, length),
            inspected=caller.inspected,
            py_dataset=py_dataset,
        )

    def synchronize(self, model: keras.Model) -> None:
        """Makes all replicas hold the same state of `model` and its optimizers.

        It has no effect with options that keep replicas equal (the default). Under
        `gradient_accumulation="local"` or `local_steps`, call it after `train_on_batch` and before
        you save the model or read its weights; every worker must call. `fit`, `evaluate` and
        `predict` do so automatically.

        Args:
            model: a model trained under this strategy.
        """
        if self.frequency.gradient_accumulation == "local":
            for optimizer in optimizers_of(model):
                accumulation.synchronize(optimizer, self)
        if self.frequency.local_steps > 1:
            self.averaging(model).synchronize()

    settle = deprecated.method("settle", "synchronize")

    def run(self, fn: Any, args: Any = (), kwargs: Any = None, options: Any = None) -> Any:
        """Runs `fn` on every replica; a step of a Keras model gets this module's treatment."""
        self.used = True
        if not tf.executing_eagerly():
            worker_activity.trace()
        fn = _private.undecorated_step(fn)
        if not _private.is_keras_function(fn):
            if any(isinstance(arg, _private.PerReplicaBatch) for arg in args):
                raise StrategyError(
                    f"tfaccel: fit runs {fn}; expected a plain method train_step or test_step of "
                    "the model; remove the decorator (fit wraps it in a tf.function itself)."
                )
            layers = custom_loops.prepare(fn, self, (args, kwargs)).layers
            if self.batch_norm == "synchronized":
                for layer in layers:
                    batch_norm.synchronize(_private.layers_of(layer))
            alone = self.placement.replicas == 1 or self.frequency.local_steps > 1
            with contextlib.nullcontext() if alone else layer_state.averaged(layers):
                return super().run(fn, args, kwargs, options)  # type: ignore[misc]
        (batch,), host_batch = args, None
        model = getattr(fn, "__self__", None)
        if not isinstance(batch, _private.PerReplicaBatch):
            host_batch = batch
            trains = getattr(fn, "__name__", "") == "train_step"
            allow_multiples = model is not None and (
                has_custom_step(model) or self._in_proportion(model, trains)
            )
            batch = self._shard(batch, allow_multiples)
        if model is None:
            return self.run_predict_step(fn, batch, host_batch, kwargs, options)
        self._prepare(model)
        self._check(model, fn)
        reductions = self.checks.reductions(model, kind_of(fn))
        return self.run_step(model, fn, batch, reductions, None, kwargs, options)

    def _check(self, model: keras.Model, fn: Any) -> None:
        """Compares the first step of its kind with one device's, where that is possible."""
        if self._compares:
            self.checks.first_step(self, model, fn)

    @property
    def _compares(self) -> bool:
        return self.placement.replicas > 1 and not isinstance(self, tf.distribute.TPUStrategy)

    def _in_proportion(self, model: keras.Model, trains: bool) -> bool:
        """Whether to split parts of a batch in proportion for Keras's own steps.

        A part that only happens to have a multiple of rows (a table next to the rows) would be
        split too: the first-step check decides.
        """
        checked = trains and self._compares and self.check != "off"
        return checked or self.checks.in_proportion(model)

    @property
    def checks(self) -> Checks:
        """The first-step checks of this strategy."""
        checks: Checks = vars(self).setdefault("_checks", Checks(self.check))
        return checks

    def shard(self, batch: Any, multiples: bool = False) -> _private.PerReplicaBatch:
        """Shards one global batch of host tensors over the local replicas.

        Args:
            batch: a nest.
            multiples: as in `tfaccel.distribute.batch_sharding.ShardingOptions`.
        """
        return shard_host_batch(batch, self.placement, multiples=multiples)

    def min_over_workers(self, number: int) -> int:
        """The minimum of the workers' numbers; every worker must call."""
        return min(numbers[0] for numbers in self.gather_numbers([number]))

    def gather_numbers(self, numbers: list[int]) -> list[list[int]]:
        """The numbers of every worker, in rank order; every worker must call."""
        return [numbers]

    def _shard(self, batch: Any, multiples: bool) -> _private.PerReplicaBatch:
        """Shards a global batch; one that `tf.distribute` has already sharded is unchanged."""
        leaves = tf.nest.flatten(batch)
        if any(isinstance(leaf, tf.distribute.DistributedValues) for leaf in leaves):
            return sharded_by_tensorflow(batch, self.placement)
        if self.input == "per_worker" and self.placement.workers > 1:
            return shard_own_batch(batch, self.placement, multiples)
        return shard_host_batch(batch, self.placement, self.partial_batch, multiples)

    def _refuse_unsharded(self, dataset: tf.data.Dataset) -> None:
        policy = dataset.options().experimental_distribute.auto_shard_policy
        off = policy == tf.data.experimental.AutoShardPolicy.OFF
        if off and self.placement.workers > 1 and self.input != "per_worker":
            raise InputError(
                "tfaccel: the dataset's auto_shard_policy is OFF, so every worker would train on "
                "the same rows; expected DATA (the default: each worker takes its rows of every "
                "global batch). Leave the policy unset and let every worker make the same dataset; "
                "or let each make one of its own rows, with input='per_worker'."
            )

    def _refuse_stateful(self, model: keras.Model) -> None:
        if self.placement.replicas == 1:
            return
        for layer in _private.layers_of(model):
            if isinstance(layer, keras.layers.RNN) and layer.stateful:
                raise StrategyError(
                    f"tfaccel: layer {layer.name!r} is stateful, with a state for each row of the "
                    f"global batch, and {self.placement.replicas} replicas have parts of it; "
                    "expected stateful=False; or use strategy 'one_device' or 'model_parallel'."
                )

    def _prepare(self, model: keras.Model) -> None:
        """Checks that `model` is of this strategy, and adapts its optimizers and losses."""
        self._adopt(model)
        self._refuse_stateful(model)
        if model.jit_compile and any("CPU" in d.upper() for d in self.extended.worker_devices):
            raise StrategyError(
                "tfaccel: jit_compile=True was requested on CPU replicas, where XLA has no "
                "all-reduce; compile with jit_compile='auto', or use strategy 'one_device'."
            )
        for optimizer in optimizers_of(model):
            if not isinstance(self, tf.distribute.TPUStrategy):  # XLA does its own fusion
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
        if self.batch_norm == "synchronized":
            batch_norm.synchronize(_private.layers_of(model))
        aggregate_states(model)
        weight_metrics(model)
        if self.frequency.replicas_diverge:
            sync_points.synchronize_after_epochs(model, self.synchronize)


class KerasFitExtended:
    """Mixin for a `tf.distribute.StrategyExtended`."""

    _seeds: list[Any]

    def seeds(self) -> list[Any]:
        """The states of the Keras seed generators made under this strategy."""
        return [seed for ref in getattr(self, "_seeds", []) if (seed := ref()) is not None]

    def _use_merge_call(self) -> bool:
        # Inside a tf.function no replica pauses for another: collectives match up directly, and so
        # updates may be in a `cond` (gradient accumulation, loss scaling:
        # https://github.com/keras-team/keras/issues/17429). Eagerly, replicas run one after the
        # other and must pause; a loop outside of replicas has none.
        return bool(tf.executing_eagerly()) and not _private.updates_without_replica()

    def _create_variable(self, next_creator: Any, **kwargs: Any) -> Any:
        if step.current() is not None and not tf.executing_eagerly():
            raise StrategyError(
                f"tfaccel: variable {kwargs.get('name')!r} is created inside a step, where each "
                "replica would create its own; expected all variables before the first step; "
                "create it in __init__ or build, or call what creates it once before fit."
            )
        if not tf.executing_eagerly() and callable(kwargs.get("initial_value")):
            # Created in a function, as by a metric at its first update: there TensorFlow would
            # initialize it in a `cond`, where no replica can see another's value.
            with tf.init_scope():
                if tf.executing_eagerly():
                    return self._create_variable(next_creator, **kwargs)
        if kwargs.get("aggregation") == tf.VariableAggregation.ONLY_FIRST_REPLICA:
            # Keras sets this for its counters (iterations, learning rate). Every replica counts the
            # same, and reading the first one would pause the others.
            kwargs["aggregation"] = tf.VariableAggregation.NONE
            custom_loops.adopt_new_optimizer()
        if kwargs.get("aggregation") == tf.VariableAggregation.SUM:
            # Metric states are summed when they are read; Keras before 3.10 does not mark them.
            kwargs["synchronization"] = tf.VariableSynchronization.ON_READ
        none = kwargs.get("aggregation") in (None, tf.VariableAggregation.NONE)
        if none and kwargs.get("synchronization") == tf.VariableSynchronization.ON_READ:
            # TensorFlow could not read it outside of a replica.
            kwargs["synchronization"] = tf.VariableSynchronization.AUTO
        variable = super()._create_variable(next_creator, **kwargs)  # type: ignore[misc]
        if kwargs.get("aggregation") == tf.VariableAggregation.MEAN:
            mix_in(variable, ReplicaLocalAssign)
        mix_in(variable, NumericConversion)
        if kwargs.get("aggregation") == tf.VariableAggregation.SUM:
            mix_in(variable, Sum)
        if (model := _private.compiling_model()) is not None:
            _private.set_strategy(model, self._container_strategy())  # type: ignore[attr-defined]
        if str(kwargs.get("name", "")).endswith("seed_generator_state"):
            self._seeds = [*getattr(self, "_seeds", []), weakref.ref(variable)]
        return variable
