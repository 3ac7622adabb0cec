"""DTensor's own settings, which it reads from the environment when its first device is created.

This is the one place outside the launcher that changes the environment.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import tensorflow as tf
from tensorflow.experimental import dtensor

from tfaccel.cluster.cluster import Cluster
from tfaccel.distribute.model_parallel import replicated_ops
from tfaccel.distribute.model_parallel.mesh import MeshShape
from tfaccel.errors import LayoutError, StrategyError

# In TensorFlow 2.21 the pass that combines all-reduces gives silently wrong weights in graph mode
# (tests/model_parallel/test_dtensor_setup.py shows it).
_COMBINE = "DTENSOR_ENABLE_COMBINE_ALL_REDUCES_OPTIMIZATION"


def start(mesh: MeshShape, devices: Sequence[str], cluster: Cluster | None) -> object:
    """Starts DTensor's devices and returns its mesh.

    Args:
        mesh: the axes.
        devices: the devices of this process, such as ``("CPU:0", "CPU:1")``.
        cluster: the processes of this job, or None.

    Raises:
        LayoutError: when the mesh size differs from the number of devices.
        StrategyError: when TensorFlow's devices were in use before.
    """
    workers = cluster.size if cluster is not None else 1
    if mesh.size != len(devices) * workers:
        listed = f"{len(devices)} ({', '.join(devices)})"
        expected = listed if workers == 1 else f"{listed} on each of {workers} workers"
        raise LayoutError(
            f"tfaccel: mesh {mesh} has {mesh.size} devices and there are {expected}; expected the "
            f"same; change the mesh or devices=."
        )
    os.environ[_COMBINE] = "0"
    for name in replicated_ops.replicated():
        os.environ[f"DTENSOR_ENABLE_REPLICATED_SPMD_AS_DEFAULT_TF.{name.upper()}"] = "1"
    kind = devices[0].partition(":")[0]
    if cluster is not None and workers > 1:
        os.environ["DTENSOR_JOB_NAME"] = "worker"
        os.environ["DTENSOR_CLIENT_ID"] = str(cluster.rank)
        os.environ["DTENSOR_NUM_CLIENTS"] = str(workers)
        os.environ["DTENSOR_JOBS"] = ",".join(cluster.workers)
    _initialize(kind)
    if workers > 1:
        return dtensor.create_distributed_mesh(
            list(mesh.axes), local_devices=list(devices), device_type=kind
        )
    return dtensor.create_mesh(list(mesh.axes), devices=list(devices))


def _initialize(kind: str) -> None:
    try:
        dtensor.initialize_accelerator_system(kind)
    except ValueError as reason:
        if "already been initialized" not in str(reason):
            raise
        if not tf.config.experimental.list_physical_devices(kind):  # pragma: no cover
            raise
        if "Accelerator system" not in str(reason):
            raise StrategyError(
                "tfaccel: strategy 'model_parallel' was requested after TensorFlow had started; "
                "create the strategy before anything else uses TensorFlow."
            ) from None
