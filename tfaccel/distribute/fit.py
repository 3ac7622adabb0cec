"""What every data-parallel strategy of tfaccel does for `keras.Model.fit`.

`KerasFit` goes before a `tf.distribute.Strategy`, `KerasFitExtended` before its Extended. They
override public methods of the two (and two hooks that TensorFlow names for subclasses), and
nothing of Keras. docs/changed_in_keras.md lists all that is changed, and docs/architecture.md shows
the way of a batch.
"""

from __future__ import annotations

import weakref
from typing import Any

import keras
import tensorflow as tf

from tfaccel.distribute import (
    _private,
    accumulation,
    all_rows,
    build,
    context,
    in_one_call,
    logs,
    looks,
    loops,
    outside,
    padding,
    same_data,
    scope,
    state,
    step,
)
from tfaccel.distribute.adapt import adapt
from tfaccel.distribute.apart import Apart
from tfaccel.distribute.batches import Batches, Sharded, Starved, shard, without_nothing
from tfaccel.distribute.check import Checks
from tfaccel.distribute.compression import Wire
from tfaccel.distribute.compression.powersgd import PowerSGD
from tfaccel.distribute.executions import Executions
from tfaccel.distribute.frequency import Frequency
from tfaccel.distribute.fused import fuse
from tfaccel.distribute.gradients import Gradients, install, is_own
from tfaccel.distribute.in_one_call import Passes
from tfaccel.distribute.kept import InOneStep, keep_states
from tfaccel.distribute.local_steps import Averaging, train_alone
from tfaccel.distribute.loss import whole_batch
from tfaccel.distribute.numbers import Numbers, Sum
from tfaccel.distribute.optimizer import optimizers_of, reduce_first
from tfaccel.distribute.replica_options import ReplicaOptions
from tfaccel.distribute.scalars import count_by_share
from tfaccel.distribute.split import Placement
from tfaccel.distribute.ways import Ways
from tfaccel.errors import InputError, StrategyError


class KerasFit:
    """Mixin for a `tf.distribute.Strategy`.

    Attributes:
        used: whether anything has run under this strategy.
        wire: how gradients travel; None as they are.
        frequency: how often the replicas communicate.
        integer: the integers that replicas can sum.
        ragged: what becomes of a batch with fewer rows than the first: ``"exact"`` (trained as it
            is), ``"pad"`` or ``"drop"`` (see `tfaccel.distribute.padding`).
        executions: how many steps run in one call, of static batches; None for one at a time.
        check: whether the first step of a model is compared with one device's: ``"auto"`` for
            models with parts of their own, ``"always"`` or ``"off"``.
    """

    extended: Any
    integer = tf.int64
    ragged = "exact"
    used = False
    check = "auto"
    wire: Wire | None = None
    frequency = Frequency()
    executions: Executions | None = None

    def _set_options(self, options: ReplicaOptions | None) -> None:
        options = options or ReplicaOptions()
        self.frequency, self.wire, self.check = options.frequency, options.wire, options.check
        if options.ragged is not None:
            self.ragged = options.ragged

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
        if (here := step.current()) is not None:
            library = _private.library_that_asks()
            if library == "keras" or (library and not here.sums_next):
                return 1
        elif tf.distribute.in_cross_replica_context() and _private.loss_asks():
            return 1
        return int(self.extended._num_replicas_in_sync)

    def scope(self) -> Any:
        """As TensorFlow's; a model that Keras is about to build under it is made ready first."""
        outside.hand_over()
        install()
        if (model := _private.building_model()) is not None:
            scope.check(model, self)
            build.by_steps(model, self)
        return super().scope()  # type: ignore[misc]

    def experimental_distribute_dataset(self, dataset: Any, options: Any = None) -> Any:
        """Distributes a dataset; one that `Model.fit` asks for, in tfaccel's way.

        Each of its global batches is cut by rows, one part for each replica. A script of its own
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
        self._prepare_callbacks(caller.callbacks)
        if self.frequency.apart:
            writes = self.placement.rank == 0
            looks.before_saving(caller.callbacks, lambda: self.settle(model), writes)
            self.settle(model)
        # What is evaluated or predicted counts to the last row.
        trains = caller.method == "fit" and not caller.validates
        ragged = "pad" if self.ragged == "drop" and not trains else self.ragged
        if self.executions is not None:
            possible = caller.method != "predict" and caller.threads is None
            possible = possible and in_one_call.fits(dataset.element_spec)
            if self.executions.prepare(caller, possible) > 1:
                return Passes(dataset, self.placement, ragged)
        own = own_step(model)
        multiples = own or self._in_proportion(model, trains)
        devices, threads = self.extended.worker_devices, caller.threads
        share = self.share if self.placement.workers > 1 else None
        length = same_data.length_of(dataset, getattr(caller.epoch, "num_batches", None))
        if share is not None:
            same_data.check_alike(dataset, length, share)
        given = (ragged, threads, multiples, not own, share, length)
        return Batches(dataset, self.placement, devices, *given)

    def settle(self, model: keras.Model) -> None:
        """Makes all replicas hold the same state of `model` and its optimizers.

        It changes nothing under options that keep replicas equal (the default). Under
        `accumulate="local"` or `local_steps`, call it after `train_on_batch` and before you save
        the model or read its weights; every worker must call. `fit`, `evaluate` and `predict` do
        so by themselves.

        Args:
            model: a model that is trained under this strategy.
        """
        if self.frequency.accumulate == "local":
            for optimizer in optimizers_of(model):
                accumulation.settle(optimizer, self)
        if self.frequency.local_steps > 1:
            self._averaging(model).settle()

    def _averaging(self, model: keras.Model) -> Averaging:
        """What averages the replicas of `model` under `local_steps`."""
        found = vars(self).setdefault("_averagings", weakref.WeakKeyDictionary())
        if model not in found:
            found[model] = Averaging(model, self, self.frequency.local_steps)
        averaging: Averaging = found[model]
        return averaging

    def run(self, fn: Any, args: Any = (), kwargs: Any = None, options: Any = None) -> Any:
        """Runs `fn` on every replica; a step of a Keras model gets what this module gives."""
        self.used = True
        if not _private.is_keras_function(fn):
            if any(isinstance(arg, (Sharded, Starved)) for arg in args):
                raise StrategyError(
                    f"tfaccel: fit runs {fn}, expected a plain method train_step or test_step of "
                    "the model; take the decorator off it (fit makes a tf.function of it itself)."
                )
            loops.prepare(fn, self)
            return super().run(fn, args, kwargs, options)  # type: ignore[misc]
        (batch,), given = args, None
        model = getattr(fn, "__self__", None)
        if not isinstance(batch, (Sharded, Starved)):
            given = batch
            trains = getattr(fn, "__name__", "") == "train_step"
            may = model is not None and (own_step(model) or self._in_proportion(model, trains))
            batch = self._shard(batch, may)
        batch = batch._replace(data=without_nothing(batch.data))
        if model is None:  # predict: no loss, no state, nothing to put together but the rows
            if given is not None and (model := _private.predicting_model()) is not None:
                scope.check(model, self)
                build.for_method(model, "predict_on_batch", build.specs(given), self)
            predicted = super().run(fn, (batch.data,), kwargs, options)  # type: ignore[misc]
            if isinstance(batch.real, tuple):
                return predicted
            real = self.experimental_local_results(batch.real)  # type: ignore[attr-defined]
            return tf.nest.map_structure(lambda v: self._real_rows(v, real), predicted)
        self._prepare(model)
        if getattr(fn, "__name__", "") == "train_step":
            self._check(model, fn)
        return self.run_step(model, fn, batch, self.checks.ways(model), None, kwargs, options)

    def run_step(
        self,
        model: keras.Model,
        fn: Any,
        batch: Sharded | Starved,
        ways: Ways,
        keeps: dict[int, list[Any]] | None = None,
        kwargs: Any = None,
        options: Any = None,
    ) -> Any:
        """Runs a step of a Keras model on every replica, and puts together what they say.

        Args:
            model: prepared.
            fn: its bound `train_step` or `test_step`.
            batch: cut for the replicas.
            ways: how the step is put together.
            keeps: where to leave the gradients that each of our replicas takes, by its number.
            kwargs: of `run`.
            options: of `run`.
        """
        training = getattr(fn, "__name__", "") == "train_step"
        starved = isinstance(batch, Starved)
        whole = starved and self.ragged == "exact" and not isinstance(batch.real, tuple)
        averaging = self._averaging(model) if training and self.frequency.local_steps > 1 else None
        gathers = ways.all_rows and not whole

        def replica_step(data: Any, share: tf.Tensor, real: Any) -> Any:
            share = step.share_of(data) if share is None else share
            real = None if isinstance(real, tuple) else real
            if gathers:
                data, share, real = all_rows.gather(data, share, real)
            ours = step.Step(
                share,
                starved or gathers,
                whole or gathers,
                alone=averaging is not None,
                real=real,
                rows=step.known_rows(data),
                averages=training,
                gradients=self._gradients(fn) if training else None,
                ways=ways,
                recorded=None if keeps is None else [],
            )
            context.adapted()
            with step.entered(ours) as here:
                averaged = state.Averaged(state.statistics(model) if training else ())
                counted = state.CountedOnce(model) if here.whole else None
                with state.own_randomness(self.extended.seeds()):
                    said = fn(data)
                if counted is not None:
                    counted.assign(here)
                if averaging is not None:
                    averaging.after_step()
                if keeps is not None:
                    keeps[context.number()] = list(here.recorded or ())
                return logs.merged(model, said, here, averaged)

        batch = batch._replace(data=without_nothing(batch.data))
        apart = None
        if (tf.executing_eagerly() or step.is_checking()) and self.placement.local > 1:
            apart = Apart([model, *_private.layers_of(model)])

        turns = replica_step if apart is None else apart.turns(replica_step)
        merged = super().run(turns, tuple(batch), kwargs, options)  # type: ignore[misc]
        if apart is not None:
            apart.end()
        return tf.nest.map_structure(self._merged, merged)

    def _check(self, model: keras.Model, fn: Any) -> None:
        """Compares the first step with one device's, where that can be told."""
        if self._compares:
            self.checks.first_step(self, model, fn)

    @property
    def _compares(self) -> bool:
        return self.placement.replicas > 1 and not isinstance(self, tf.distribute.TPUStrategy)

    def _in_proportion(self, model: keras.Model, trains: bool) -> bool:
        """Whether parts of a batch in proportion may be cut so for steps of Keras's own.

        A part that only happens to have a multiple of rows (a table beside the rows) would be cut
        too: the first-step check tells.
        """
        may = trains and self._compares and self.check != "off"
        return may or self.checks.in_proportion(model)

    @property
    def checks(self) -> Checks:
        """The first-step checks of this strategy."""
        found: Checks = vars(self).setdefault("_checks", Checks(self.check))
        return found

    def cut(self, batch: Any) -> Sharded | Starved:
        """Cuts one global batch of host tensors for our replicas, each row for one of them."""
        return shard(batch, self.placement)

    def least(self, number: int) -> int:
        """The least of the workers' numbers; every worker must call."""
        return min(numbers[0] for numbers in self.share([number]))

    def share(self, numbers: list[int]) -> list[list[int]]:
        """The numbers of every worker, in the order of their ranks; every worker must call."""
        return [numbers]

    def _gradients(self, fn: Any) -> Gradients | None:
        """What takes the gradients of a step that is not Keras's own."""
        if self.frequency.local_steps > 1 or not is_own(fn):
            return None
        together = self.frequency.accumulate != "local" and not isinstance(self.wire, PowerSGD)
        return Gradients(reduces=together)

    def reduce(self, reduce_op: Any, value: Any, axis: Any = None) -> Any:
        """Reduces `value` over replicas; values that a Keras step has merged come back as is."""
        if isinstance(value, (tuple, list, dict)):
            # Keras averages one batch only to learn its shapes.
            batch = value.data if isinstance(value, (Sharded, Starved)) else value
            return tf.nest.map_structure(self._spec, without_nothing(batch))
        if isinstance(value, tf.Tensor) and getattr(value, "_tfaccel_merged", False):
            return value
        return super().reduce(reduce_op, value, axis)  # type: ignore[misc]

    def _shard(self, batch: Any, multiples: bool) -> Sharded | Starved:
        """Cuts a batch that is whole; one that `tf.distribute` has cut already stays as it is."""
        leaves = tf.nest.flatten(batch)
        if any(isinstance(leaf, tf.distribute.DistributedValues) for leaf in leaves):
            return Starved(batch, None)  # nobody says how many rows each replica has: maybe none
        return shard(batch, self.placement, self.ragged, multiples)

    def _real_rows(self, value: Any, real: Any) -> Any:
        """What was predicted of rows that are no copies, as Keras puts it together."""
        predicted = self.experimental_local_results(value)  # type: ignore[attr-defined]
        cut = padding.real_rows(predicted, real)
        return _private.PerReplica(cut) if self.placement.workers > 1 else tf.concat(cut, axis=0)

    def _merged(self, value: Any) -> tf.Tensor:
        first = tf.identity(self.experimental_local_results(value)[0])  # type: ignore[attr-defined]
        first._tfaccel_merged = True
        return first

    def _spec(self, value: Any) -> Any:
        if value is None:
            return None
        first = self.experimental_local_results(value)[0]  # type: ignore[attr-defined]
        return tf.TensorSpec([None, *first.shape[1:]], first.dtype)

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
                "tfaccel: jit_compile=True was asked for on CPU replicas, where XLA has no "
                "all-reduce; compile with jit_compile='auto', or use strategy 'one_device'."
            )
        for optimizer in optimizers_of(model):
            if not isinstance(self, tf.distribute.TPUStrategy):  # XLA fuses by itself
                fuse(optimizer)
            if self.frequency.local_steps > 1:
                train_alone(optimizer, self)
                continue
            reduce_first(optimizer, self)
            if self.frequency.accumulate == "local":
                accumulation.accumulate_locally(optimizer)
        if self.wire is not None and getattr(model, "optimizer", None) is not None:
            self.wire.prepare(model.optimizer, list(model.trainable_variables), self)
        install()
        whole_batch(model)
        keep_states(model)
        count_by_share(model)
        padding.count_real_rows(model)
        if self.frequency.apart:
            looks.after_epochs(model, self.settle)


def own_step(model: keras.Model) -> bool:
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
            loops.adopt_new_optimizer()
        if kwargs.get("aggregation") == tf.VariableAggregation.SUM:
            # Metric states are summed when they are read; before Keras 3.10 they did not say when.
            kwargs["synchronization"] = tf.VariableSynchronization.ON_READ
        none = kwargs.get("aggregation") in (None, tf.VariableAggregation.NONE)
        if none and kwargs.get("synchronization") == tf.VariableSynchronization.ON_READ:
            # TensorFlow could not read it outside of a replica.
            kwargs["synchronization"] = tf.VariableSynchronization.AUTO
        variable = super()._create_variable(next_creator, **kwargs)  # type: ignore[misc]
        if kwargs.get("aggregation") == tf.VariableAggregation.MEAN:
            adapt(variable, InOneStep)
        adapt(variable, Numbers)
        if kwargs.get("aggregation") == tf.VariableAggregation.SUM:
            adapt(variable, Sum)
        if (model := _private.compiling_model()) is not None:
            _private.set_strategy(model, self._container_strategy())  # type: ignore[attr-defined]
        if str(kwargs.get("name", "")).endswith("seed_generator_state"):
            self._seeds = [*getattr(self, "_seeds", []), weakref.ref(variable)]
        return variable
