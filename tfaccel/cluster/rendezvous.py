"""The workers meet over TCP before TensorFlow's own server starts.

TensorFlow's leader waits without limit for a missing worker, and its server pairs with whoever
calls: a rank 0 left over from an old job trains with rank 1 of a new one, and both succeed. So
the workers first shake hands on the very address that TensorFlow will use: rank 0 listens, the
others say which job, which size, which rank and which versions they are, and all hear the same
answer. It keeps mistakes out, not enemies: nothing here is encrypted or authenticated.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

from tfaccel.cluster.cluster import Cluster
from tfaccel.cluster.job_identity import JobIdentity, installed_versions
from tfaccel.cluster.rendezvous_client import MAX_PAYLOAD_BYTES, join
from tfaccel.cluster.rendezvous_server import RendezvousServer
from tfaccel.errors import ClusterError

__all__ = ["MAX_PAYLOAD_BYTES", "RendezvousResult", "installed_versions", "rendezvous"]


@dataclass(frozen=True)
class RendezvousResult:
    """What all workers know once they have met.

    Attributes:
        payload: rank 0's bytes, the same on every worker.
        waited_s: how long this worker waited for the others, in seconds.
    """

    payload: bytes
    waited_s: float


def rendezvous(
    cluster: Cluster,
    *,
    timeout_s: float = 300.0,
    job_id: str = "",
    payload: bytes = b"",
    versions: Mapping[str, str] | None = None,
) -> RendezvousResult:
    """Waits until every worker of this job is here, and agrees with them on rank 0's payload.

    All ports are free again when it returns, so that TensorFlow's server can take them.

    Args:
        cluster: who we are.
        timeout_s: how long to wait for the others, in seconds.
        job_id: tells this job from any other on the same addresses; the same on all workers.
        payload: rank 0's word to all, at most `MAX_PAYLOAD_BYTES`; the others' is not used.
        versions: what must be the same on all workers; `installed_versions()` when None.

    Returns:
        Rank 0's payload, and the seconds waited.

    Raises:
        ClusterError: a port is taken, a worker does not come in time, comes twice, or belongs to
            another job, size or set of versions.

    >>> rendezvous(Cluster(("localhost:2222",), 0, "example"), payload=b"seed 7").payload
    b'seed 7'
    """
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ClusterError(
            f"the payload of the rendezvous has {len(payload)} bytes; "
            f"expected at most {MAX_PAYLOAD_BYTES}"
        )
    if cluster.size == 1:
        return RendezvousResult(payload, 0.0)
    identity = JobIdentity(
        job_id, cluster.size, dict(installed_versions() if versions is None else versions)
    )
    started = time.monotonic()
    # Every worker holds its own port while it waits: TensorFlow will need it, and a port that
    # somebody else has is better said now.
    with _listen(cluster) as listener:
        if cluster.rank == 0:
            RendezvousServer(cluster, identity, started, timeout_s).gather(listener, payload)
        else:
            payload = join(cluster, identity, started, timeout_s)
    return RendezvousResult(payload, time.monotonic() - started)


def _listen(cluster: Cluster) -> socket.socket:
    """Takes our own port on all interfaces, as TensorFlow's server will."""
    _, port = cluster.host_and_port(cluster.rank)
    backlog = max(cluster.size, 128)
    try:
        # Both kinds of address where the machine has both, else IPv4.
        with contextlib.suppress(ValueError):
            return socket.create_server(
                ("", port), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True
            )
        return socket.create_server(("", port), backlog=backlog)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ClusterError(
            f"worker {cluster.rank} cannot listen on port {port} of {cluster.address} ({reason}); "
            "expected a free port: stop what is left of an earlier job on this machine, "
            f"or choose another port in {cluster.source}"
        ) from error
