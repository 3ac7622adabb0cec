"""ModelParallelStrategy: one program over a mesh of devices, each with a part of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.experimental import dtensor

from tfaccel.cluster.cluster import Cluster, cluster_of
from tfaccel.distribute import _private, broadcast, build, custom_loops, dataset_consistency
from tfaccel.distribute.files import file_callbacks, model_files
from tfaccel.distribute.gradients import install
from tfaccel.distribute.keras_strategy import KerasStrategy
from tfaccel.distribute.model_parallel import (
    captured_tensors,
    dtensor_setup,
    fork,
    gathered_variables,
    host_copies,
    host_fallback,
    host_transfer,
    indexed_slices,
    mesh_model,
    mesh_rows,
    phase,
    preprocessing,
    unsupported,
    user_functions,
)
from tfaccel.distribute.model_parallel.deferred_errors import DeferredErrors
from tfaccel.distribute.model_parallel.layout_planner import LayoutPlanner
from tfaccel.distribute.model_parallel.mesh import MeshShape
from tfaccel.distribute.model_parallel.mesh_batches import (
    MeshBatches,
    place,
    place_tensors,
    to_dtensors,
    to_mesh,
)
from tfaccel.distribute.model_parallel.mesh_check import MeshChecks
from tfaccel.distribute.model_parallel.random_override import RandomOverride
from tfaccel.distribute.model_parallel.seeds import Seeds
from tfaccel.distribute.model_parallel.variable import MeshVariable
from tfaccel.distribute.optimizer import optimizers_of
from tfaccel.distribute.worker_activity import worker_activity
from tfaccel.errors import ScopeError


class ModelParallelStrategy(KerasStrategy, tf.distribute.Strategy):  # type: ignore[misc]
    """Runs ordinary Keras models split over a mesh of devices, with DTensor.

    A step is one program over all devices. It computes what one device would over the global batch;
    layouts decide where each piece of it runs.

    Args:
        mesh: the axes, such as ``"batch=2,model=4"``.
        layouts: ``"auto"``, ``"fully_sharded"`` or rules as in `LayoutMap`.
        devices: the devices of this process.
        cluster: the processes of this job, or None.
        check: whether the first step of a model is compared with one device's: ``"auto"`` for those
            that one device can hold, ``"always"`` or ``"off"``.

    Raises:
        LayoutError: when the mesh does not fit the devices, or the rules do not fit the mesh.

    Attributes:
        mesh: DTensor's mesh.
        planner: decides the layout of each variable.
        cluster: the processes of this job, or None.
        deferred_errors: of the last step.
        seeds: the states of the random operations of steps.
        replicated_operations: types of operations that get whole operands in the model whose step
            is traced, since DTensor could not lay them out otherwise.
        checks: compares the first step of a model with one device's.
        random_override: replaces random operations with constants while steps are compared.
        created_variables: the variables created since it became a list, with their initial stored
            values; None to record none.
        gathered_values: whole values of variables that have been gathered for a file, by id.
    """

    holds_whole_variables = False
    gathered_values: dict[int, Any] | None = None
    created_variables: list[tuple[MeshVariable, tf.Tensor]] | None = None

    def __init__(
        self,
        mesh: str | Mapping[str, int] | MeshShape,
        layouts: str | Mapping[str, Any] = "auto",
        devices: Sequence[str] = ("CPU:0",),
        cluster: Cluster | None = None,
        check: str = "auto",
    ) -> None:
        workers = cluster.size if cluster is not None else 1
        if not isinstance(mesh, MeshShape):
            mesh = MeshShape.parse(mesh, len(devices) * workers)
        self.planner = LayoutPlanner(mesh, layouts)
        self.mesh = dtensor_setup.start(mesh, devices, cluster)
        fork.register_hook()
        user_functions.install()
        install()
        self.cluster = cluster
        if cluster is not None:
            model_files.all_models_by_policy(self)
        self.deferred_errors = DeferredErrors()
        self.seeds = Seeds(self)
        self.replicated_operations: set[str] = set()
        self.check = check
        self.checks, self.random_override = MeshChecks(self), RandomOverride(self)
        self._devices = tuple(devices)
        super().__init__(ModelParallelExtended(self))

    def state_variables(self, model: keras.Model) -> list[tf.Variable]:
        """The variables of this strategy with state of a run of `model`, in a fixed order."""
        return list(self.seeds.states)

    def expect_state(self, names: Sequence[str]) -> None:
        """Creates those of `state_variables` that a step creates as it is traced.

        Args:
            names: of those that a checkpoint has.
        """
        self.seeds.expect(names)

    def _distribute_for_loop(self, dataset: tf.data.Dataset, options: Any) -> Any:
        axis = self.planner.mesh.batch_axis
        return MeshBatches(dataset, self.mesh, axis, strategy=self, by_leaf=True)

    def _prepare_callbacks(self, callbacks: Any) -> None:
        if self.cluster is not None:
            file_callbacks.write_on_chief(callbacks, self)

    def _batches(self, caller: _private.Caller, dataset: tf.data.Dataset) -> Any:
        """Lays the global batches of `dataset` out on the mesh."""
        model, threads, kind = caller.model, caller.threads, build.STEPS[caller.method]
        fallback = model._tfaccel_host_fallback
        mapped = preprocessing.map_host_part(model, dataset, read_ahead=threads is None)
        if (reason := preprocessing.stays_on_host(mapped.element_spec)) is not None:
            fallback.enable(kind, reason)
        if self.cluster is not None:
            length = dataset_consistency.length_of(
                dataset, getattr(caller.epoch, "num_batches", None)
            )
            dataset_consistency.check_equal(dataset, length, self.gather_numbers)
        own = None
        if (rows := mesh_rows.MeshRows.of(self.mesh, self.planner.mesh.batch_axis)) is not None:
            why = mesh_rows.why_whole(dataset.element_spec)
            if mapped is not dataset:
                why = "the model looks up strings or tables in them"
            if fallback.applies_to(kind):
                why = f"the {kind} step of model {model.name!r} is not divided over the mesh"
            own = mesh_rows.own_batches(caller, dataset, rows, why)
        return MeshBatches(
            mapped,
            self.mesh,
            self.planner.mesh.batch_axis,
            threads,
            strategy=self,
            divides=lambda: not fallback.applies_to(kind),
            inspected=caller.inspected,
            own=own,
        )

    def run(self, fn: Any, args: Any = (), kwargs: Any = None, options: Any = None) -> Any:
        """Runs `fn` once, over the whole mesh; its results are replicated on every device."""
        fork.check()
        self.used = True
        if not tf.executing_eagerly():
            worker_activity.trace()
        by_keras = _private.is_keras_function(fn) or _private.is_called_by_keras()
        if by_keras and not isinstance(fn, keras.layers.Layer):
            model = getattr(fn, "__self__", None) or _private.predicting_model()
            if model is not None:
                _refuse_traced(model)
                self._adopt(model)
                build.build_from_steps(model, self)
        else:
            context = tf.distribute.get_replica_context()
            if isinstance(context, SingleProgramContext) and context.strategy is self:
                return fn(*args, **(kwargs or {}))  # of a function that already runs on the mesh
            user_functions.before_run(self)
            if user_functions.in_python(self):
                return user_functions.compiled(fn, self)(*args, **(kwargs or {}))
            parts = custom_loops.prepare(fn, self, (args, kwargs), custom_loops.Anywhere)
            if tf.executing_eagerly():
                args, kwargs = self.on_mesh_where_tensors((args, kwargs or {}))
            with mesh_model.in_custom_loop(parts, self), unsupported.eager_step(fn):
                return super().run(fn, to_dtensors(args), to_dtensors(kwargs or {}), options)
        if tf.executing_eagerly() and not host_copies.in_use():
            args = place(args, self.mesh, self.planner.mesh.batch_axis)
        return super().run(fn, to_dtensors(args), kwargs, options)

    def as_one_device(self, fn: Any, data: Any) -> Any:
        """Runs `fn` once, on the host, in the context of a step."""
        with SingleProgramContext(self, replica_id_in_sync_group=0):
            return fn(data)

    def reduce(self, reduce_op: Any, value: Any, axis: Any = None) -> Any:
        """Returns `value`, which is the sum and the mean of one, reduced along `axis` if given."""
        value = to_dtensors(value)
        if axis is None:
            return value
        if isinstance(reduce_op, str):
            reduce_op = tf.distribute.ReduceOp(reduce_op.upper())
        is_sum = reduce_op == tf.distribute.ReduceOp.SUM
        of = tf.reduce_sum if is_sum else tf.reduce_mean
        return tf.nest.map_structure(lambda each: of(each, axis), value)

    def run_on_host(self, function: Any, reason: str, args: Any, kwargs: Any) -> Any:
        """Calls a `tf.function` that cannot run on the mesh (`host_fallback.py`)."""
        return host_fallback.run_function(function, self, reason, args, kwargs)

    def on_mesh(self, batch: Any) -> Any:
        """Puts a batch on the mesh, rows over the batch axis, unless it is already there."""
        return to_mesh(batch, self.mesh, self.planner.mesh.batch_axis)

    def on_mesh_where_tensors(self, values: Any) -> Any:
        """A nest with its arrays and tensors as DTensors; other values are unchanged."""
        return place_tensors(values, self.mesh, self.planner.mesh.batch_axis)

    def broadcast(self, values: list[Any]) -> list[tf.Tensor]:
        """Gives every process the chief's values; every process must call.

        Args:
            values: tensors or arrays, the same dtypes and shapes in every process.
        """
        return broadcast.broadcast(self, values)

    @worker_activity.collective
    def sum_over_workers(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """As in `tfaccel.distribute.broadcast.Workers`."""
        size = self.cluster.size if self.cluster is not None else 1
        return host_transfer.sum_over_processes(tensors, size, self._devices)

    def gather_numbers(self, numbers: list[int]) -> list[list[int]]:
        """The numbers of every process, in the order of their ranks; every process must call."""
        if self.cluster is None:
            return [numbers]
        own = np.zeros((self.cluster.size, len(numbers)), np.int64)
        own[self.cluster.rank] = numbers
        (every,) = self.sum_over_workers([tf.constant(own)])
        found: list[list[int]] = every.numpy().tolist()
        return found

    def gathered_for_file(self, model: keras.Model) -> AbstractContextManager[None]:
        """As in `tfaccel.distribute.files.one_writer.WritingStrategy`."""
        return gathered_variables.gathered_to_chief(model, self)

    def _adopt(self, model: keras.Model) -> None:
        super()._adopt(model)
        for optimizer in optimizers_of(model):
            _private.adopt_optimizer(optimizer, self)
        mesh_model.place_model(model, self)


def _refuse_traced(model: Any) -> None:
    """Raises while a function of `model` that takes no host batches is being traced."""
    if not tf.executing_eagerly() and not isinstance(model, mesh_model.MeshModel):
        raise ScopeError(
            f"tfaccel: a batch is given to model {model.name!r}, which was compiled outside the "
            "scope of this strategy; call model.compile(...) inside `with strategy.scope():` "
            "before train_on_batch, test_on_batch or predict_on_batch."
        )


class SingleProgramContext(tf.distribute.ReplicaContext):  # type: ignore[misc]
    """The context of a step: the whole mesh is one replica."""

    def all_reduce(self, reduce_op: Any, value: Any, options: Any = None) -> Any:
        """Returns `value`, which is the sum and the mean of one."""
        return value

    def all_gather(self, value: Any, axis: int, options: Any = None) -> Any:
        """Returns `value`, which has all rows."""
        return value


class ModelParallelExtended(tf.distribute.StrategyExtended):  # type: ignore[misc]
    """How variables are created and steps are run."""

    def _create_variable(self, next_creator: Any, **kwargs: Any) -> tf.Variable:
        owner = self._container_strategy()
        if host_copies.creates_on_mesh():  # a step on the host, that builds its optimizer
            return host_copies.made_on_mesh(lambda: self._create_variable(next_creator, **kwargs))
        if phase.current() == phase.COPY or fork.in_forked_process():
            return next_creator(**kwargs)
        if not tf.executing_eagerly():
            if (constant := tf.get_static_value(kwargs["initial_value"])) is not None:
                kwargs["initial_value"] = constant  # of the graph: Nadam's product is 1 at first
            with tf.init_scope():
                return self._create_variable(next_creator, **kwargs)
        if kwargs.get("aggregation") == tf.VariableAggregation.ONLY_FIRST_REPLICA:
            custom_loops.adopt_new_optimizer(custom_loops.Anywhere)
        value = kwargs.pop("initial_value")
        like = kwargs.pop("colocate_with", None)
        with tf.device("/CPU:0"):
            value = tf.convert_to_tensor(value() if callable(value) else value, kwargs.get("dtype"))
        shape, planner = tuple(value.shape), owner.planner
        if isinstance(like, MeshVariable):
            plan = planner.slot(shape, tuple(like.shape), like.plan)
        else:
            path, layers = _private.variable_path(kwargs.get("name")), _private.layers_being_built()
            plan = planner.variable(path, shape, bool(kwargs.get("trainable")), layers)
        if (model := _private.compiling_model()) is not None:
            _private.set_strategy(model, owner)
            mesh_model.place_model(model, owner)
        kept = {k: kwargs[k] for k in ("trainable", "name", "dtype", "aggregation") if k in kwargs}
        return MeshVariable(initial_value=value, plan=plan, mesh=owner.mesh, strategy=owner, **kept)

    def _distribute_datasets_from_function(self, dataset_fn: Any, options: Any) -> Any:
        # Every process reads the global batches, and puts its own slices on its devices.
        return self._container_strategy().experimental_distribute_dataset(
            dataset_fn(tf.distribute.InputContext())
        )

    def call_for_each_replica(self, fn: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs `fn` once."""
        owner = self._container_strategy()
        if host_copies.in_use():
            with SingleProgramContext(owner, replica_id_in_sync_group=0):
                return fn(*args, **(kwargs or {}))
        captured_tensors.capture_on_mesh(owner)
        with SingleProgramContext(owner, replica_id_in_sync_group=0), phase.entered(phase.STEP):
            return tf.nest.map_structure(self._replicated_results, fn(*args, **(kwargs or {})))

    def _replicated_results(self, value: Any) -> Any:
        """Results leave the step replicated, so that every process can read them."""
        if not tf.is_tensor(value) or value.shape.rank is None:
            return value
        mesh = self._container_strategy().mesh
        return dtensor.relayout(value, dtensor.Layout.replicated(mesh, value.shape.rank))

    def update(
        self, var: Any, fn: Any, args: Any = (), kwargs: Any = None, group: bool = True
    ) -> Any:
        """Calls `fn` on the stored variable; on the host, on the whole value."""
        if host_copies.in_use() or (phase.current() == phase.HOST and tf.executing_eagerly()):
            return fn(var, *args, **(kwargs or {}))
        with phase.entered(phase.UPDATE), _private.division_replaced(indexed_slices.divide):
            return fn(var, *args, **(kwargs or {}))

    def _reduce_to(self, reduce_op: Any, value: Any, destinations: Any, options: Any) -> Any:
        return value

    def _gather_to_implementation(
        self, value: Any, destinations: Any, axis: Any, options: Any
    ) -> Any:
        return value

    def _local_results(self, value: Any) -> tuple[Any, ...]:
        return (value,)

    def _get_local_replica_id(self, replica_id_in_sync_group: Any) -> Any:
        return replica_id_in_sync_group

    def value_container(self, value: Any) -> Any:
        """Returns `value`."""
        return value

    def _use_merge_call(self) -> bool:
        return False

    def _in_multi_worker_mode(self) -> bool:
        return False

    @property
    def _num_replicas_in_sync(self) -> int:
        return 1

    @property
    def should_checkpoint(self) -> bool:
        """True: every process takes part where a model is written."""
        return True

    @property
    def should_save_summary(self) -> bool:
        """Whether this process writes summaries: the chief."""
        return cluster_of(self._container_strategy()).is_chief

    @property
    def experimental_between_graph(self) -> bool:
        """False: there is one program."""
        return False

    @property
    def experimental_should_init(self) -> bool:
        """True: every process creates the variables."""
        return True

    @property
    def experimental_require_static_shapes(self) -> bool:
        """False: a step takes batches of any number of rows."""
        return False

    @property
    def worker_devices(self) -> tuple[str, ...]:
        """The devices of this process."""
        return tuple(self._container_strategy().mesh.local_devices())

    @property
    def parameter_devices(self) -> tuple[str, ...]:
        """The devices of this process."""
        return self.worker_devices
