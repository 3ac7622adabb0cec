"""The server of the rendezvous: rank 0 waits for all others and answers them at once.

It challenges each connection with a nonce; only a holder of the job's secret can answer. Others are
rejected: they do not disturb the rendezvous, and what they send is discarded.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from absl import logging

from tfaccel.cluster import framing, job_secret
from tfaccel.cluster.cluster import Cluster
from tfaccel.cluster.job_identity import JobIdentity
from tfaccel.cluster.unidentified import Unidentified, abort
from tfaccel.errors import ClusterError

CLOSE_TIMEOUT_S = 5.0
WARN_AFTER_S = 30.0
"""After this long without the others a rank logs whom it waits for, and why."""

HELLO, VERDICT, PAYLOAD = b"hello", b"verdict", b"payload"
"""What a frame is; its code covers this too."""

_MAX_HELLO_BYTES = 1 << 14
_NAMED = 5  # of rejected connections


@dataclass(eq=False)
class _Client:
    """A connection to rank 0, and the bytes received on it so far."""

    connection: socket.socket
    peer: str
    challenge: bytes = field(default_factory=job_secret.nonce)
    received: bytearray = field(default_factory=bytearray)
    nonce: bytes = b""
    """The bytes received."""
    rank: int | None = None
    answered: bool = False


class RendezvousServer:
    """Waits for one client per rank, then answers all of them at once."""

    def __init__(
        self,
        cluster: Cluster,
        identity: JobIdentity,
        key: bytes,
        started: float,
        timeout_s: float,
    ) -> None:
        self._cluster = cluster
        self._identity = identity
        self._key = key
        self._started = started
        self._timeout_s = timeout_s
        self._clients: dict[int, _Client] = {}
        self._disconnected: set[int] = set()
        self._unidentified: Unidentified[_Client] = Unidentified(cluster.size)
        self._turned_away: dict[str, None] = {}
        self._warned = False

    def gather(self, listener: socket.socket, payload: bytes) -> None:
        """Returns when every rank has arrived and received the payload."""
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
                        abort(key.data.connection)

    def _serve(self, waiting: selectors.BaseSelector, listener: socket.socket) -> None:
        waited_s = time.monotonic() - self._started
        if waited_s >= self._timeout_s:
            raise ClusterError(self._missing())
        if waited_s >= WARN_AFTER_S and not self._warned:
            self._warned = True
            logging.warning("tfaccel: still waiting: %s.", self._missing(WARN_AFTER_S))
        until = [self._timeout_s - waited_s]
        if not self._warned:
            until.append(WARN_AFTER_S - waited_s)
        if (next_overdue := self._unidentified.seconds_left()) is not None:
            until.append(next_overdue)
        for key, _ in waiting.select(min(until)):
            if not isinstance(key.data, _Client):
                self._accept(waiting, listener)
            elif not self._receive(key.data):
                waiting.unregister(key.fileobj)
                self._disconnect(key.data)
        for client in self._unidentified.pop_overdue():
            waiting.unregister(client.connection)
            abort(client.connection)

    def _accept(self, waiting: selectors.BaseSelector, listener: socket.socket) -> None:
        try:
            connection, address = listener.accept()
        except OSError:  # It closed the connection already.
            return
        connection.setblocking(False)
        client = _Client(connection, str(address[0]).removeprefix("::ffff:"))
        waiting.register(connection, selectors.EVENT_READ, client)
        self._unidentified.add(client)
        with contextlib.suppress(OSError):
            connection.send(framing.frame(client.challenge))

    def _receive(self, client: _Client) -> bool:
        """Reads from a client; False when it has disconnected, or is not a worker (a port scan)."""
        try:
            chunk = client.connection.recv(1 << 14)
            if client.rank is None and not client.answered:
                client.received += chunk
                hello = framing.first_frame(client.received, _MAX_HELLO_BYTES)
                if hello is not None:
                    client.received.clear()
                    self._identify(client, hello)
        except BlockingIOError:
            return True
        except (OSError, framing.ProtocolError):
            return False
        return bool(chunk)

    def _disconnect(self, client: _Client) -> None:
        abort(client.connection)
        self._unidentified.discard(client)
        if client.rank is not None:
            del self._clients[client.rank]
            self._disconnected.add(client.rank)

    def _identify(self, client: _Client, message: bytes) -> None:
        content = job_secret.verify(self._key, client.challenge + HELLO, message)
        if content is None:
            # The client cannot verify this answer, and reports that. It closes the connection
            # itself: its deadline has not passed yet.
            client.answered = True
            client.connection.send(framing.frame(b""))
            if len(self._turned_away) < _NAMED:
                self._turned_away[client.peer] = None
            return
        client.nonce = content[: job_secret.NONCE_BYTES]
        self._unidentified.discard(client)
        self._admit(client, framing.as_object(content[job_secret.NONCE_BYTES :]))

    def _admit(self, client: _Client, hello: Mapping[str, object]) -> None:
        rank = hello.get("rank")
        valid = isinstance(rank, int) and 0 <= rank < self._cluster.size
        number = rank if isinstance(rank, int) and valid else None
        address = client.peer if number is None else self._cluster.workers[number]
        problem = ""
        if differing := self._identity.differences(hello):
            problem = f"differs from worker 0 ({self._cluster.workers[0]}): {'; '.join(differing)}"
        elif number is None:
            problem = f"is not in 0 to {self._cluster.size - 1}"
        elif number == 0 or number in self._clients:
            first = self._clients[number].peer if number else self._cluster.workers[0]
            problem = f"connected twice, from {first} and from {client.peer}"
        if problem or number is None:
            message = (
                f"worker {rank} ({address}) {problem}; start every worker once, "
                "with the same TFACCEL_JOB_ID, cluster and packages, and stop those of old jobs"
            )
            self._send_to_all([client], {"error": message}, b"")
            raise ClusterError(message)
        client.rank = number
        self._clients[number] = client

    def _answer(self, body: Mapping[str, str], payload: bytes) -> None:
        self._send_to_all(list(self._clients.values()), body, payload)

    def _send_to_all(
        self, clients: Sequence[_Client], body: Mapping[str, str], payload: bytes
    ) -> None:
        """Sends verdict and payload to all, then lets each disconnect first.

        Whoever disconnects first keeps the address busy for a minute (TIME_WAIT): not rank 0's
        port. The wait is at most `CLOSE_TIMEOUT_S`.
        """
        frames = {VERDICT: json.dumps(body).encode(), PAYLOAD: payload}
        # A disconnected client is not an error here: its own output gives the reason.
        for client in clients:
            client.answered = True
            message = b"".join(
                framing.frame(job_secret.sign(self._key, client.nonce + what, content))
                for what, content in frames.items()
            )
            with contextlib.suppress(OSError):
                client.connection.settimeout(CLOSE_TIMEOUT_S)
                client.connection.sendall(message)
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        for client in clients:
            with contextlib.suppress(OSError):
                while (left := deadline - time.monotonic()) > 0:
                    client.connection.settimeout(left)
                    if not client.connection.recv(1 << 12):
                        break

    def _missing(self, within_s: float | None = None) -> str:
        missing = [
            f"worker {rank} ({address})"
            + (" (connected, then disconnected)" * (rank in self._disconnected))
            for rank, address in enumerate(self._cluster.workers)
            if rank and rank not in self._clients
        ]
        rejected = ""
        if self._turned_away:
            rejected = (
                f" (connection from {', '.join(self._turned_away)} rejected: wrong job secret)"
            )
        among = f"{len(missing)} of {self._cluster.size} workers"
        return (
            f"{among} did not connect within {within_s or self._timeout_s:g} s: "
            f"{', '.join(missing)}{rejected}; start them, look at their own output, or wait longer "
            "with TFACCEL_START_TIMEOUT"
        )
