"""A TPU's cores as TensorFlow's own TPUStrategy sees them, on a host that has none.

A real `TPUStrategy` is made and steps are traced and placed; they cannot run.
"""

from __future__ import annotations

import tensorflow as tf
from tensorflow.python.client.session import _DeviceAttributes
from tensorflow.python.tpu.tpu_system_metadata import TPUSystemMetadata

NO_KERNEL = "No OpKernel was registered to support Op 'TPUReplicatedInput'"


class Resolver:
    """What `TPUStrategy` asks a `TPUClusterResolver` for."""

    task_type = task_id = None

    def __init__(self, cores: int) -> None:
        tf.config.set_soft_device_placement(True)
        self._cores = cores

    def get_tpu_system_metadata(self) -> TPUSystemMetadata:
        names = [f"/job:localhost/replica:0/task:0/device:TPU:{i}" for i in range(self._cores)]
        devices = [_DeviceAttributes(name, "TPU", 0, i) for i, name in enumerate(names)]
        return TPUSystemMetadata(self._cores, 1, self._cores, None, devices)

    def master(self) -> str:
        return ""

    def get_job_name(self) -> str:
        return "localhost"

    def cluster_spec(self) -> tf.train.ClusterSpec:
        return tf.train.ClusterSpec({})
