"""The workers of a strategy meet before TensorFlow starts."""

from __future__ import annotations

import os

from tfaccel.cluster import mpi
from tfaccel.cluster.cluster import Cluster
from tfaccel.cluster.rendezvous import Meeting, installed_versions, meet
from tfaccel.errors import StrategyError
from tfaccel.strategies.options import Options


def of(cluster: Cluster, options: Options, payload: bytes, transport: str = "auto") -> Meeting:
    """Waits for all workers of `cluster`, which shall speak over the same `transport`.

    Rank 0's `payload` is given to all.

    Raises:
        StrategyError: when workers have no addresses to meet at.
        ClusterError: when a worker does not come in time, or belongs to another job.
    """
    if cluster.source == mpi.SOURCE:
        raise StrategyError(
            f"tfaccel: {cluster.size} workers were started by mpiexec, which gives them no "
            "addresses, expected strategy 'multi_worker_mirrored' with communication='mpi'; or "
            "start the job with `tfaccel launch` or srun."
        )
    return meet(
        cluster,
        timeout_s=options.start_timeout,
        job_id=os.environ.get("TFACCEL_JOB_ID", ""),
        payload=payload,
        versions={**installed_versions(), "communication": transport},
    )
