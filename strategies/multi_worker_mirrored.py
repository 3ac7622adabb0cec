"""Multi-worker mirrored: several machines, each device with a copy of the model."""

from __future__ import annotations

import tensorflow as tf

from tfaccel.distribute import agreement
from tfaccel.distribute.multi_worker import MultiWorkerMirroredStrategy
from tfaccel.errors import StrategyError
from tfaccel.strategies import meeting, settings, transport
from tfaccel.strategies.accepted import ANY, COMMON
from tfaccel.strategies.request import Request

ACCEPTS = {
    **COMMON,
    "communication": ANY,
    "wire": ANY,
    "accumulate": ANY,
    "local_steps": ANY,
    "ragged": ANY,
    "collective_timeout": ANY,
}


def make(request: Request) -> tf.distribute.Strategy:
    """Meets the other workers, agrees on a seed, and returns the strategy over all of them.

    Raises:
        StrategyError: when there is no cluster, or the transport asked for cannot be had.
        ClusterError: when a worker does not come in time, or belongs to another job.
    """
    cluster, options = request.cluster, request.options
    if cluster is None:
        raise StrategyError(
            "tfaccel: strategy 'multi_worker_mirrored' found no cluster; set TF_CONFIG on every "
            "worker, or start the script with `tfaccel launch --nproc 2 script.py`."
        )
    kind = request.devices[0].partition(":")[0]
    way = transport.chosen(options, kind, cluster)
    devices = settings.show_only(request.devices)
    if way == "mpi":
        from tfaccel.distribute.mpi import MpiStrategy

        settings.spare_thread()
        communicator = transport.over_mpi(cluster, options)
        return MpiStrategy(cluster, communicator, devices, request.replica_options)
    agreement.adopt(meeting.of(cluster, options, agreement.offer(), way).payload)
    return MultiWorkerMirroredStrategy(
        cluster,
        device_type=kind,
        devices=[int(name.partition(":")[2]) for name in devices],
        communication=way,
        timeout_s=options.collective_timeout,
        options=request.replica_options,
    )
