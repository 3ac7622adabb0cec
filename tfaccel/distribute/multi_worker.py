"""MultiWorkerMirroredStrategy for Keras 3: the devices of several workers."""

from __future__ import annotations

import functools
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import tensorflow as tf

from tfaccel.cluster.cluster import Cluster
from tfaccel.distribute import _private, broadcast, dataset_cache
from tfaccel.distribute.batch_sharding import Placement
from tfaccel.distribute.effects import InOrderOfReplicas
from tfaccel.distribute.files import file_callbacks, model_files
from tfaccel.distribute.fit import KerasFit, KerasFitExtended
from tfaccel.distribute.layer_state import AveragesLayerState
from tfaccel.distribute.replica_options import ReplicaOptions
from tfaccel.distribute.step import all_reduce_sum, transport_dtype
from tfaccel.distribute.worker_activity import worker_activity

_NUMBERS = 8  # gathered tensors are padded to a multiple of this, to be traced once


class MultiWorkerMirroredExtended(
    AveragesLayerState,
    InOrderOfReplicas,
    KerasFitExtended,
    _private.CollectiveAllReduceExtended,  # type: ignore[misc]
):
    """How `MultiWorkerMirroredStrategy` creates variables and runs steps."""

    def __init__(
        self, strategy: Any, resolver: Any, options: Any, device_type: str, devices: Sequence[int]
    ) -> None:
        self._local = (device_type, devices)
        super().__init__(strategy, cluster_resolver=resolver, communication_options=options)

    def _initialize_local_devices(self, resolver: Any, worker: str) -> tuple[tuple[str, ...], str]:
        # TensorFlow uses one CPU however many there are.
        kind, numbers = self._local
        return tuple(f"{worker}/device:{kind}:{i}" for i in numbers), kind

    def __del__(self) -> None:
        """Runs TensorFlow's own clean-up only on fully constructed objects."""
        if hasattr(self, "_check_health_thread_should_stop"):
            super().__del__()


class MultiWorkerMirroredStrategy(KerasFit, tf.distribute.MultiWorkerMirroredStrategy):  # type: ignore[misc]
    """Data parallelism over several workers, each with the same number of devices.

    Create it before anything else uses a TensorFlow device.

    Args:
        cluster: the workers, and the rank of this one.
        device_type: ``"CPU"`` or ``"GPU"``.
        devices: number of devices of that type in each worker, or their indices.
        communication: ``"auto"``, ``"ring"`` or ``"nccl"``.
        timeout_s: seconds after which a collective gives up on a silent worker; None waits for
            TensorFlow's own heartbeat.
        options: how the replicas train together; None for the defaults.
    """

    holds_whole_variables = True

    def __init__(
        self,
        cluster: Cluster,
        device_type: str = "CPU",
        devices: int | Sequence[int] = 1,
        communication: str = "auto",
        timeout_s: float | None = None,
        options: ReplicaOptions | None = None,
    ) -> None:
        implementation = tf.distribute.experimental.CommunicationImplementation
        communication_options = tf.distribute.experimental.CommunicationOptions(
            implementation=implementation[communication.upper()], timeout_seconds=timeout_s
        )
        resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec({"worker": list(cluster.workers)}),
            task_type="worker",
            task_id=cluster.rank,
            rpc_layer="grpc",
        )
        self.cluster = cluster
        self.communication = communication
        self._set_options(options)
        dataset_cache.use_worker_files(cluster.rank)
        model_files.all_models_by_policy(self)
        _private.reserve_collective_keys(self)
        devices = range(devices) if isinstance(devices, int) else devices
        with _sigterm_kept():
            extended = MultiWorkerMirroredExtended(
                self, resolver, communication_options, device_type, devices
            )
        tf.distribute.Strategy.__init__(self, extended)

    @functools.cached_property
    def _gather_functions(self) -> dict[Any, Any]:
        return {}

    @property
    def placement(self) -> Placement:
        """Which of all replicas run in this process."""
        local = len(self.extended.worker_devices)
        return Placement(self.cluster.size, self.cluster.rank, local)

    def gather(self, value: Any, axis: int) -> tf.Tensor:
        """Concatenates `value` of all replicas along `axis`, in any numeric dtype."""
        local = [tf.convert_to_tensor(v) for v in self.experimental_local_results(value)]
        dtype = local[0].dtype
        local = [tf.cast(v, transport_dtype(dtype)) for v in local]
        if not tf.executing_eagerly() or local[0].shape.rank is None:
            return tf.cast(self._concatenated(local, axis), dtype)
        # Keras's eager `predict` gathers one tensor of each worker, of however many replicas.
        key = (len(local), axis, local[0].dtype, local[0].shape.rank)
        if key not in self._gather_functions:
            spec = tf.TensorSpec([None] * local[0].shape.rank, local[0].dtype)
            self._gather_functions[key] = _traced(
                lambda values: self._concatenated(values, axis), [spec] * len(local)
            )
        return tf.cast(self._gather_functions[key](local), dtype)

    def _concatenated(self, local: list[tf.Tensor], axis: int) -> tf.Tensor:
        """Eagerly it is traced at each call, and TensorFlow warns of that after some."""
        return super().gather(_private.PerReplica(local) if len(local) > 1 else local[0], axis)

    @worker_activity.collective
    def gather_numbers(self, numbers: list[int]) -> list[list[int]]:
        """The numbers of every worker, in rank order; every worker must call.

        Args:
            numbers: equally many on each worker.
        """
        if not numbers:
            return [[] for _ in range(self.placement.workers)]
        padded = [*numbers, *[0] * (-len(numbers) % _NUMBERS)]
        if len(padded) not in self._gather_functions:
            self._gather_functions[len(padded)] = self._gather_function(len(padded))
        gathered = self._gather_functions[len(padded)](tf.constant([padded], tf.int64))
        return [row[: len(numbers)] for row in gathered.numpy().tolist()]

    def _gather_function(self, numbers: int) -> Any:
        """A function of a worker's int64 numbers, of shape `[1, numbers]`: those of all workers.

        It is traced once, like those of `gather`, and sums, which any number of replicas can.
        """
        workers, rank, local = (self.placement.workers, self.placement.rank, self.placement.local)

        def of_replica(local_row: tf.Tensor) -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            is_first = tf.equal(context.replica_id_in_sync_group, rank * local)
            row = tf.one_hot(rank, workers, dtype=tf.int64)[:, None] * tf.cast(is_first, tf.int64)
            return context.all_reduce(tf.distribute.ReduceOp.SUM, row * local_row)

        def gathered(local_row: tf.Tensor) -> tf.Tensor:
            with self.scope():
                sums = self.extended.call_for_each_replica(of_replica, args=(local_row,))
            return self.experimental_local_results(sums)[0]

        return _traced(gathered, tf.TensorSpec([1, numbers], tf.int64))

    def broadcast(self, values: list[Any]) -> list[tf.Tensor]:
        """Gives every worker the chief's values; every worker must call.

        Args:
            values: tensors or arrays, the same dtypes and shapes on every worker.
        """
        return broadcast.broadcast(self, values)

    @worker_activity.collective
    def sum_over_workers(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """As in `tfaccel.distribute.broadcast.Workers`."""
        return [self.experimental_local_results(t)[0] for t in self._sum_function(tensors)]

    @functools.cached_property
    def _sum_function(self) -> Any:
        local = self.placement.local

        def of_replica(tensors: list[tf.Tensor]) -> list[tf.Tensor]:
            context = tf.distribute.get_replica_context()
            number = tf.cast(context.replica_id_in_sync_group, tf.int32)
            is_first = tf.equal(number % local, 0)
            return [all_reduce_sum(tf.where(is_first, t, tf.zeros_like(t))) for t in tensors]

        def summed(tensors: list[tf.Tensor]) -> Any:
            with self.scope():
                return self.extended.call_for_each_replica(of_replica, args=(tensors,))

        return tf.function(summed, autograph=False)

    def gathered_for_file(self, model: Any) -> AbstractContextManager[None]:
        """Nothing to do: every worker holds whole variables."""
        return nullcontext()

    def _prepare_callbacks(self, callbacks: Any) -> None:
        file_callbacks.write_on_chief(callbacks, self)

    def _prepare(self, model: Any) -> None:
        super()._prepare(model)
        model_files.write_by_policy(model, self)


def _traced(function: Any, spec: Any) -> Any:
    """A function of one argument, traced.

    A `tf.function` itself keeps a lock that it has taken when its arguments do not match
    (TensorFlow 2.21), and other threads then wait for it forever.
    """
    return tf.function(function, autograph=False, input_signature=[spec]).get_concrete_function()


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Keeps the process's SIGTERM handler.

    TensorFlow's preemption notifier takes SIGTERM when a multi-worker context is created, and the
    process then ignores it and keeps training (seen with 2.21).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler if handler is not None else signal.SIG_DFL)
