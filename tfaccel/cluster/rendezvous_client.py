"""The client of the rendezvous: every other rank connects to rank 0 until it answers.

It answers rank 0's challenge with a code derived from the job's secret, and accepts only an answer
with such a code: the secret itself is never sent.
"""

from __future__ import annotations

import json
import socket
import time

from absl import logging

from tfaccel.cluster import framing, job_secret
from tfaccel.cluster.cluster import Cluster
from tfaccel.cluster.job_identity import JobIdentity
from tfaccel.cluster.rendezvous_server import CLOSE_TIMEOUT_S, HELLO, PAYLOAD, VERDICT, WARN_AFTER_S
from tfaccel.errors import ClusterError

MAX_PAYLOAD_BYTES = 1 << 20
_MAX_FRAME_BYTES = MAX_PAYLOAD_BYTES + (1 << 10)
_CONNECT_TIMEOUT_S = 5.0


def join(
    cluster: Cluster, identity: JobIdentity, key: bytes, started: float, timeout_s: float
) -> bytes:
    """Connects to rank 0 until it answers."""
    host, port = cluster.host_and_port(0)
    hello = json.dumps(
        {
            "rank": cluster.rank,
            "job_id": identity.job_id,
            "size": identity.size,
            "versions": identity.versions,
        }
    ).encode()
    deadline = started + timeout_s
    pause, last, warned = 0.05, "no answer", False
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(
                (host, port), timeout=min(left, _CONNECT_TIMEOUT_S)
            ) as connection:
                # With no listener, a local connection can by chance connect to itself.
                if connection.getsockname() == connection.getpeername():
                    raise ConnectionRefusedError("no process is listening")
                received = bytearray()
                asks_by = time.monotonic() + min(left, _CONNECT_TIMEOUT_S)
                challenge = _read_frame(connection, received, asks_by)
                nonce = job_secret.nonce()
                content = job_secret.sign(key, challenge + HELLO, nonce + hello)
                connection.sendall(framing.frame(content))
                # Rank 0 started before this call, so its deadline comes first.
                by = time.monotonic() + timeout_s + CLOSE_TIMEOUT_S
                return _receive_answer(cluster, connection, received, key, nonce, by)
        except framing.ProtocolError:
            raise ClusterError(
                f"worker {cluster.rank} called worker 0 at {cluster.workers[0]} and something "
                "other than tfaccel answered; expected worker 0 of this job: stop processes of an "
                "earlier job there, or choose another port"
            ) from None
        except OSError as error:
            last = error.strerror or str(error) or type(error).__name__
            if not warned and time.monotonic() - started >= WARN_AFTER_S:
                warned = True
                logging.warning(
                    "tfaccel: %s.", _unreached(cluster, WARN_AFTER_S, f"{last}, so far")
                )
        time.sleep(max(0.0, min(pause, deadline - time.monotonic())))
        pause = min(pause * 1.5, 1.0)
    raise ClusterError(_unreached(cluster, timeout_s, last))


def _unreached(cluster: Cluster, waited_s: float, why: str) -> str:
    return (
        f"worker {cluster.rank} ({cluster.address}) waited {waited_s:g} s and did not reach "
        f"worker 0 at {cluster.workers[0]} ({why}); start it, look at its own output, "
        "or wait longer with TFACCEL_START_TIMEOUT"
    )


def _receive_answer(
    cluster: Cluster,
    connection: socket.socket,
    received: bytearray,
    key: bytes,
    nonce: bytes,
    deadline: float,
) -> bytes:
    """Rank 0's payload, from two frames: a verdict, then the payload."""

    def read(what: bytes) -> bytes:
        message = _read_frame(connection, received, deadline)
        content = job_secret.verify(key, nonce + what, message)
        if content is None:
            raise ClusterError(
                f"worker {cluster.rank} and what answered at {cluster.workers[0]} do not hold the "
                "same secret; expected worker 0 of this job: give all workers the same "
                f"TFACCEL_JOB_ID and {job_secret.VARIABLE} (`tfaccel launch` does), and stop "
                "processes of an earlier job there"
            )
        return content

    error = framing.as_object(read(VERDICT)).get("error")
    if error is not None:
        raise ClusterError(f"worker {cluster.rank} got an error from worker 0: {error}")
    return read(PAYLOAD)


def _read_frame(connection: socket.socket, received: bytearray, deadline: float) -> bytes:
    while True:
        body = framing.first_frame(received, _MAX_FRAME_BYTES)
        if body is not None:
            del received[: len(framing.frame(body))]
            return body
        connection.settimeout(max(0.01, deadline - time.monotonic()))
        chunk = connection.recv(1 << 16)
        if not chunk:
            raise ConnectionResetError("it closed the connection before it answered")
        received += chunk
