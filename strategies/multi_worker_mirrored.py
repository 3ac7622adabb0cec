"""Multi-worker mirrored: several machines, each device with a copy of the model."""

from __future__ import annotations

import tensorflow as tf

from tfaccel.distribute.multi_worker import MultiWorkerMirroredStrategy
from tfaccel.errors import StrategyError
from tfaccel.strategies import process_settings, transport, worker_startup
from tfaccel.strategies.accepted_options import ANY, COMMON
from tfaccel.strategies.request import Request

ACCEPTS = {
    **COMMON,
    "data_service": ANY,
    "profile": ANY,
    "profile_dir": ANY,
    "communication": ANY,
    "gradient_compression": ANY,
    "gradient_accumulation": ANY,
    "local_steps": ANY,
    "partial_batch": ANY,
    "input": ANY,
    "collective_timeout": ANY,
    "stall_timeout": ANY,
}


def make(request: Request) -> tf.distribute.Strategy:
    """Meets the other workers, agrees on a seed, and returns the strategy over all of them.

    Raises:
        StrategyError: when there is no cluster, or the requested transport is unsupported.
        ClusterError: when a worker does not arrive in time, or belongs to another job.
    """
    cluster, options = request.cluster, request.options
    if cluster is None:
        raise StrategyError(
            "tfaccel: strategy 'multi_worker_mirrored' found no cluster; set TF_CONFIG on every "
            "worker, or start the script with `tfaccel launch --nproc 2 script.py`; `tfaccel env` "
            "lists the variables that were looked for and found."
        )
    kind = request.devices[0].partition(":")[0]
    chosen = transport.choose_transport(options, kind, cluster)
    devices = process_settings.restrict_visible_gpus(request.devices)
    if chosen == "mpi":
        from tfaccel.distribute.mpi_strategy import MpiStrategy

        process_settings.spare_thread()
        communicator = transport.connect_mpi(cluster, options)
        return MpiStrategy(cluster, communicator, devices, request.replica_options)
    worker_startup.rendezvous_for_tf_collectives(cluster, options, chosen)
    return MultiWorkerMirroredStrategy(
        cluster,
        device_type=kind,
        devices=[int(name.partition(":")[2]) for name in devices],
        communication=chosen,
        timeout_s=options.collective_timeout,
        options=request.replica_options,
    )
