"""MultiWorkerMirroredStrategy whose workers communicate over MPI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfaccel.cluster.cluster import Cluster
from tfaccel.distribute import _private, dataset_cache
from tfaccel.distribute.collectives import tuning
from tfaccel.distribute.collectives.communicator import Communicator
from tfaccel.distribute.collectives.cross_device_ops import CrossWorkerCollectives
from tfaccel.distribute.collectives.ops import WorkerCollectives
from tfaccel.distribute.effects import InOrderOfReplicas
from tfaccel.distribute.files import model_files
from tfaccel.distribute.fit import KerasFitExtended
from tfaccel.distribute.layer_state import AveragesLayerState
from tfaccel.distribute.multi_worker import MultiWorkerMirroredStrategy
from tfaccel.distribute.replica_options import ReplicaOptions


class MpiExtended(
    AveragesLayerState,
    InOrderOfReplicas,
    KerasFitExtended,
    _private.CollectiveAllReduceExtended,  # type: ignore[misc]
):
    """TensorFlow's strategy for the devices of one worker, with MPI between the workers."""

    def __init__(
        self, strategy: Any, cluster: Cluster, workers: WorkerCollectives, devices: Sequence[str]
    ) -> None:
        options = tf.distribute.experimental.CommunicationOptions()
        super().__init__(strategy, None, options, devices=tuple(devices))
        self._between = workers
        self._num_workers = cluster.size
        self._id_in_cluster = cluster.rank
        self._is_chief = cluster.is_chief
        keys = self._collective_keys
        self._cross_device_ops = CrossWorkerCollectives(devices, workers, options, keys)
        self._host_cross_device_ops = CrossWorkerCollectives(
            [self._worker_device], workers, options, keys
        )

    def __del__(self) -> None:
        """There is no TensorFlow thread to stop."""

    def _get_variable_creator_initial_value(
        self, replica_id: int, device: Any, primary_var: Any, **kwargs: Any
    ) -> Any:
        if replica_id:
            return super()._get_variable_creator_initial_value(
                replica_id, device, primary_var, **kwargs
            )

        def initial_value() -> tf.Tensor:
            with tf.device(device):
                value = kwargs["initial_value"]
                value = value() if callable(value) else value
                return self._between.broadcast(tf.convert_to_tensor(value, kwargs.get("dtype")))

        return initial_value


class MpiStrategy(MultiWorkerMirroredStrategy):
    """Data parallelism over several workers that communicate over MPI.

    Behaves as `MultiWorkerMirroredStrategy`. Gradients are reduced while backpropagation still
    runs, the last layer's first, small ones together. TensorFlow starts no server: each worker sees
    only its own devices.

    Attributes:
        communication: ``"mpi"``.

    Args:
        cluster: the workers, and the rank of this one.
        communicator: the same workers over MPI.
        devices: names of the devices of this worker, the same number on each.
        options: how the replicas train together; None for the defaults.
    """

    communication = "mpi"

    def __init__(
        self,
        cluster: Cluster,
        communicator: Communicator,
        devices: Sequence[str],
        options: ReplicaOptions | None = None,
    ) -> None:
        self.cluster = cluster
        self._set_options(options)
        dataset_cache.use_worker_files(cluster.rank)
        model_files.all_models_by_policy(self)
        _private.reserve_collective_keys(self)
        workers = WorkerCollectives(communicator, tuning.bucket_bytes(communicator))
        tf.distribute.Strategy.__init__(self, MpiExtended(self, cluster, workers, devices))
