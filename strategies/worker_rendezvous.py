"""The rendezvous of a strategy's workers, before TensorFlow starts."""

from __future__ import annotations

import os

from tfaccel.cluster import mpiexec
from tfaccel.cluster.cluster import Cluster
from tfaccel.cluster.rendezvous import RendezvousResult, installed_versions, rendezvous
from tfaccel.errors import StrategyError
from tfaccel.strategies.options import Options


def join_workers(
    cluster: Cluster, options: Options, payload: bytes, transport: str = "auto"
) -> RendezvousResult:
    """Waits for all workers of `cluster`, which shall communicate over the same `transport`.

    Rank 0's `payload` is given to all.

    Raises:
        StrategyError: when workers have no addresses to meet at.
        ClusterError: when a worker does not come in time, or belongs to another job.
    """
    if cluster.source == mpiexec.SOURCE:
        raise StrategyError(
            f"tfaccel: {cluster.size} workers were started by mpiexec, which gives them no "
            "addresses, expected strategy 'multi_worker_mirrored' with communication='mpi'; or "
            "start the job with `tfaccel launch` or srun."
        )
    return rendezvous(
        cluster,
        timeout_s=options.start_timeout,
        job_id=os.environ.get("TFACCEL_JOB_ID", ""),
        payload=payload,
        versions={**installed_versions(), "communication": transport},
    )
