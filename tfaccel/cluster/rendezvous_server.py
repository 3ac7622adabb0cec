"""The server of the rendezvous: rank 0 waits for all others and answers them at once."""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tfaccel.cluster import framing
from tfaccel.cluster.cluster import Cluster
from tfaccel.cluster.job_identity import JobIdentity
from tfaccel.errors import ClusterError

CLOSE_TIMEOUT_S = 5.0
_MAX_HELLO_BYTES = 1 << 14


@dataclass
class _Client:
    """A connection to rank 0, and what has come through it so far."""

    connection: socket.socket
    peer: str
    received: bytearray = field(default_factory=bytearray)
    rank: int | None = None


class RendezvousServer:
    """Waits for one client a rank, then answers all of them at once."""

    def __init__(
        self, cluster: Cluster, identity: JobIdentity, started: float, timeout_s: float
    ) -> None:
        self._cluster = cluster
        self._identity = identity
        self._started = started
        self._timeout_s = timeout_s
        self._clients: dict[int, _Client] = {}
        self._disconnected: set[int] = set()

    def gather(self, listener: socket.socket, payload: bytes) -> None:
        """Returns when every rank is here and has been given the payload."""
        with selectors.DefaultSelector() as waiting:
            listener.setblocking(False)
            waiting.register(listener, selectors.EVENT_READ)
            try:
                while len(self._clients) < self._cluster.size - 1:
                    self._serve(waiting, listener)
            except ClusterError as error:
                self._answer({"error": str(error)}, b"")
                raise
            else:
                listener.close()
                self._answer({}, payload)
            finally:
                for key in list(waiting.get_map().values()):
                    if isinstance(key.data, _Client):
                        key.data.connection.close()

    def _serve(self, waiting: selectors.BaseSelector, listener: socket.socket) -> None:
        left = self._started + self._timeout_s - time.monotonic()
        if left <= 0:
            raise ClusterError(self._missing())
        for key, _ in waiting.select(left):
            if not isinstance(key.data, _Client):
                try:
                    connection, address = listener.accept()
                except OSError:  # It closed the connection already.
                    continue
                connection.setblocking(False)
                client = _Client(connection, str(address[0]).removeprefix("::ffff:"))
                waiting.register(connection, selectors.EVENT_READ, client)
            elif not self._receive(key.data):
                waiting.unregister(key.fileobj)
                key.data.connection.close()
                if key.data.rank is not None:
                    del self._clients[key.data.rank]
                    self._disconnected.add(key.data.rank)

    def _receive(self, client: _Client) -> bool:
        """Reads from a client; False when it has disconnected, or is no worker (a port scan)."""
        try:
            chunk = client.connection.recv(1 << 14)
            client.received += chunk
            hello = framing.first_frame(client.received, _MAX_HELLO_BYTES)
        except BlockingIOError:
            return True
        except (OSError, framing.ProtocolError):
            return False
        if chunk and hello is not None and client.rank is None:
            self._admit(client, hello)
        return bool(chunk)

    def _admit(self, client: _Client, body: bytes) -> None:
        hello = framing.as_object(body)
        rank = hello.get("rank")
        valid = isinstance(rank, int) and 0 <= rank < self._cluster.size
        address = self._cluster.workers[rank] if valid and rank is not None else client.peer
        complaint = ""
        if found := self._identity.differences(hello):
            complaint = f"differs from worker 0 ({self._cluster.workers[0]}): {'; '.join(found)}"
        elif not valid or rank is None:
            complaint = f"is none of 0 to {self._cluster.size - 1}"
        elif rank == 0 or rank in self._clients:
            first = self._clients[rank].peer if rank else self._cluster.workers[0]
            complaint = f"came twice, from {first} and from {client.peer}"
        if complaint or rank is None:
            message = (
                f"worker {rank} ({address}) {complaint}; start every worker once, "
                "with the same TFACCEL_JOB_ID, cluster and packages, and stop those of old jobs"
            )
            _send_to_all([client.connection], {"error": message}, b"")
            raise ClusterError(message)
        client.rank = rank
        self._clients[rank] = client

    def _answer(self, body: Mapping[str, str], payload: bytes) -> None:
        _send_to_all([client.connection for client in self._clients.values()], body, payload)

    def _missing(self) -> str:
        missing = [
            f"worker {rank} ({address})"
            + (" (came, and left again)" * (rank in self._disconnected))
            for rank, address in enumerate(self._cluster.workers)
            if rank and rank not in self._clients
        ]
        return (
            f"{len(missing)} of {self._cluster.size} workers did not come within "
            f"{self._timeout_s:g} s: {', '.join(missing)}; start them, look at their own output, "
            "or wait longer with TFACCEL_START_TIMEOUT"
        )


def _send_to_all(
    connections: Sequence[socket.socket], body: Mapping[str, str], payload: bytes
) -> None:
    """Sends verdict and payload to all, then lets each disconnect first.

    Whoever disconnects first keeps the address busy for a minute (TIME_WAIT): not rank 0's port.
    """
    message = framing.frame(json.dumps(body).encode()) + framing.frame(payload)
    # A client that is gone is not our error: its own output says why.
    for connection in connections:
        with contextlib.suppress(OSError):
            connection.settimeout(CLOSE_TIMEOUT_S)
            connection.sendall(message)
    for connection in connections:
        with contextlib.suppress(OSError):
            while connection.recv(1 << 12):
                pass
