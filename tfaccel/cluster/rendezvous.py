"""The workers meet over TCP before TensorFlow's own server starts.

TensorFlow's leader waits without limit for a missing worker, and its server pairs with any process
that connects: a rank 0 left over from an old job trains with rank 1 of a new one, and both succeed.
So the workers first perform a handshake at the address that TensorFlow will use: rank 0 listens,
the others send their job, size, rank and versions, and all get the same answer.

Where the job has a secret (`job_secret`), only connections that hold it are accepted. Without one,
any process that reaches the port during the rendezvous can impersonate a worker. Nothing is
encrypted, and what TensorFlow's server then does at these addresses is neither encrypted nor
authenticated.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tfaccel.cluster import interface, job_secret
from tfaccel.cluster.cluster import Cluster
from tfaccel.cluster.job_identity import JobIdentity, installed_versions
from tfaccel.cluster.rendezvous_client import MAX_PAYLOAD_BYTES, join
from tfaccel.cluster.rendezvous_server import RendezvousServer
from tfaccel.errors import ClusterError

__all__ = ["MAX_PAYLOAD_BYTES", "installed_versions", "rendezvous"]


def rendezvous(
    cluster: Cluster,
    *,
    timeout_s: float = 300.0,
    job_id: str = "",
    secret: str = "",
    payload: bytes = b"",
    versions: Mapping[str, str] | None = None,
    arrivals: str = "",
) -> bytes:
    """Waits until every worker of this job has arrived, and shares rank 0's payload with all.

    All ports are free again when it returns, so that TensorFlow's server can take them.

    Args:
        cluster: of this worker.
        timeout_s: how long to wait for the others, in seconds.
        job_id: distinguishes this job from any other on the same addresses; the same on all
            workers.
        secret: of this job, the same on all workers; empty to accept any connection.
        payload: rank 0's message to all, at most `MAX_PAYLOAD_BYTES`; ignored on other ranks.
        versions: what must be the same on all workers; `installed_versions()` when None.
        arrivals: a directory where this machine's launcher sees which workers arrived; or empty.

    Returns:
        Rank 0's payload.

    Raises:
        ClusterError: a port is in use, a worker does not arrive in time, arrives twice, or belongs
            to another job, size or set of versions; or worker 0 does not hold the same secret.

    >>> rendezvous(Cluster(("localhost:2222",), 0, "example"), payload=b"seed 7")
    b'seed 7'
    """
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ClusterError(
            f"the payload of the rendezvous has {len(payload)} bytes; "
            f"expected at most {MAX_PAYLOAD_BYTES}"
        )
    if cluster.size == 1:
        return payload
    key = job_secret.key(secret, job_id)
    identity = JobIdentity(
        "" if key else job_id,  # a different id shows as a different key
        cluster.size,
        dict(installed_versions() if versions is None else versions),
    )
    started = time.monotonic()
    if arrivals:
        Path(arrivals, str(cluster.rank)).touch()
    # Every worker holds its own port while it waits: TensorFlow will need it, and a conflict is
    # better reported now.
    with _listen(cluster) as listener:
        if cluster.rank == 0:
            RendezvousServer(cluster, identity, key, started, timeout_s).gather(listener, payload)
        else:
            payload = join(cluster, identity, key, started, timeout_s)
    return payload


def _listen(cluster: Cluster) -> socket.socket:
    """Binds this worker's port, at the address where the others reach it."""
    _, port = cluster.host_and_port(cluster.rank)
    address = interface.own_address(cluster)
    try:
        # TensorFlow's server will bind it at all addresses.
        interface.listen(interface.EVERYWHERE, port, 1).close()
        return interface.listen(address, port, max(cluster.size, 128))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ClusterError(
            f"worker {cluster.rank} cannot listen on port {port} of {cluster.address} ({reason}); "
            "expected a free port: stop processes of an earlier job on this machine, "
            f"or choose another port in {cluster.source}"
        ) from error
