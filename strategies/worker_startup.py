"""The rendezvous of a strategy's workers, before TensorFlow starts."""

from __future__ import annotations

import os
import secrets
from typing import NamedTuple

from absl import logging

from tfaccel.cluster import coordinator, interface, job_secret, mpiexec
from tfaccel.cluster.cluster import Cluster
from tfaccel.cluster.rendezvous import installed_versions, rendezvous
from tfaccel.distribute import random_state, worker_liveness
from tfaccel.errors import StrategyError
from tfaccel.strategies.options import Options


class RendezvousInfo(NamedTuple):
    """What all workers know once they have met.

    Attributes:
        port: of the coordinator next to worker 0.
        secret: of the coordinator.
    """

    port: int
    secret: str


def rendezvous_workers(
    cluster: Cluster, options: Options, transport: str = "auto"
) -> RendezvousInfo:
    """Waits for all workers, starts their coordinator, and shares the chief's random state.

    Raises:
        StrategyError, ClusterError: as `join_workers`.
    """
    secret, port = secrets.token_hex(16), 0
    if cluster.is_chief:
        address = interface.own_address(cluster)
        port = coordinator.start(cluster.size, secret, address, options.stall_timeout)
    payload = f"{port} {secret}\n".encode() + random_state.serialize()
    received, _, state = join_workers(cluster, options, payload, transport).partition(b"\n")
    random_state.restore(state)
    number, _, secret = received.decode().partition(" ")
    return RendezvousInfo(int(number), secret)


def rendezvous_for_tf_collectives(
    cluster: Cluster, options: Options, transport: str = "auto"
) -> None:
    """As `rendezvous_workers`, for workers whose collectives are TensorFlow's.

    Raises:
        StrategyError, ClusterError: as `join_workers`.
    """
    if cluster.size == 1:
        state = join_workers(cluster, options, random_state.serialize(), transport)
        random_state.restore(state)
        return
    info = rendezvous_workers(cluster, options, transport)
    worker_liveness.watch_beside_tensorflow(cluster, info.port, info.secret)


def join_workers(
    cluster: Cluster, options: Options, payload: bytes, transport: str = "auto"
) -> bytes:
    """Waits for all workers of `cluster`, which must use the same `transport`.

    Rank 0's `payload` is sent to all.

    Raises:
        StrategyError: when workers have no addresses to meet at.
        ClusterError: when a worker does not arrive in time, or belongs to another job.
    """
    if cluster.source == mpiexec.SOURCE:
        raise StrategyError(
            f"tfaccel: {cluster.size} workers were started by mpiexec, which gives them no "
            "addresses; expected strategy 'multi_worker_mirrored' with communication='mpi'; or "
            "start the job with `tfaccel launch` or srun."
        )
    secret = os.environ.get(job_secret.VARIABLE, "").strip()
    if not secret and cluster.is_chief and not interface.is_local(cluster):
        logging.warning(
            "tfaccel: the workers rendezvous at %s without a secret: any process that reaches it "
            "can join or end this job; set %s to the same random text on all workers (`tfaccel "
            "launch` does).",
            *(cluster.address, job_secret.VARIABLE),
        )
    return rendezvous(
        cluster,
        timeout_s=options.start_timeout,
        job_id=os.environ.get("TFACCEL_JOB_ID", ""),
        secret=secret,
        payload=payload,
        versions={**installed_versions(), "communication": transport},
        arrivals=os.environ.get("TFACCEL_ARRIVALS", ""),
    )
