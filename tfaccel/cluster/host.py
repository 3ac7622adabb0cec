"""Rank 0's side of the rendezvous: it waits for all others and answers them at once."""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tfaccel.cluster import wire
from tfaccel.cluster.about import About
from tfaccel.cluster.cluster import Cluster
from tfaccel.errors import ClusterError

FAREWELL_S = 5.0
_MAX_HELLO_BYTES = 1 << 14


@dataclass
class _Guest:
    """A connection to rank 0, and what has come through it so far."""

    connection: socket.socket
    peer: str
    received: bytearray = field(default_factory=bytearray)
    rank: int | None = None


class Host:
    """Rank 0's side: collects one guest a rank, then answers all of them at once."""

    def __init__(self, cluster: Cluster, about: About, started: float, timeout_s: float) -> None:
        self._cluster = cluster
        self._about = about
        self._started = started
        self._timeout_s = timeout_s
        self._here: dict[int, _Guest] = {}
        self._left: set[int] = set()

    def gather(self, listener: socket.socket, payload: bytes) -> None:
        """Returns when every rank is here and has been given the payload."""
        with selectors.DefaultSelector() as waiting:
            listener.setblocking(False)
            waiting.register(listener, selectors.EVENT_READ)
            try:
                while len(self._here) < self._cluster.size - 1:
                    self._serve(waiting, listener)
            except ClusterError as error:
                self._answer({"error": str(error)}, b"")
                raise
            else:
                listener.close()
                self._answer({}, payload)
            finally:
                for key in list(waiting.get_map().values()):
                    if isinstance(key.data, _Guest):
                        key.data.connection.close()

    def _serve(self, waiting: selectors.BaseSelector, listener: socket.socket) -> None:
        left = self._started + self._timeout_s - time.monotonic()
        if left <= 0:
            raise ClusterError(self._missing())
        for key, _ in waiting.select(left):
            if not isinstance(key.data, _Guest):
                try:
                    connection, address = listener.accept()
                except OSError:  # It hung up before we picked up.
                    continue
                connection.setblocking(False)
                guest = _Guest(connection, str(address[0]).removeprefix("::ffff:"))
                waiting.register(connection, selectors.EVENT_READ, guest)
            elif not self._hear(key.data):
                waiting.unregister(key.fileobj)
                key.data.connection.close()
                if key.data.rank is not None:
                    del self._here[key.data.rank]
                    self._left.add(key.data.rank)

    def _hear(self, guest: _Guest) -> bool:
        """Reads what a guest says; False when it hung up, or is no worker (a port scan)."""
        try:
            chunk = guest.connection.recv(1 << 14)
            guest.received += chunk
            hello = wire.first_frame(guest.received, _MAX_HELLO_BYTES)
        except BlockingIOError:
            return True
        except (OSError, wire.ForeignError):
            return False
        if chunk and hello is not None and guest.rank is None:
            self._admit(guest, hello)
        return bool(chunk)

    def _admit(self, guest: _Guest, body: bytes) -> None:
        hello = wire.as_object(body)
        rank = hello.get("rank")
        valid = isinstance(rank, int) and 0 <= rank < self._cluster.size
        address = self._cluster.workers[rank] if valid and rank is not None else guest.peer
        complaint = ""
        if found := self._about.differences(hello):
            complaint = f"differs from worker 0 ({self._cluster.workers[0]}): {'; '.join(found)}"
        elif not valid or rank is None:
            complaint = f"is none of 0 to {self._cluster.size - 1}"
        elif rank == 0 or rank in self._here:
            first = self._here[rank].peer if rank else self._cluster.workers[0]
            complaint = f"came twice, from {first} and from {guest.peer}"
        if complaint or rank is None:
            message = (
                f"worker {rank} ({address}) {complaint}; start every worker once, "
                "with the same TFACCEL_JOB_ID, cluster and packages, and stop those of old jobs"
            )
            _tell([guest.connection], {"error": message}, b"")
            raise ClusterError(message)
        guest.rank = rank
        self._here[rank] = guest

    def _answer(self, body: Mapping[str, str], payload: bytes) -> None:
        _tell([guest.connection for guest in self._here.values()], body, payload)

    def _missing(self) -> str:
        missing = [
            f"worker {rank} ({address})" + (" (came, and left again)" * (rank in self._left))
            for rank, address in enumerate(self._cluster.workers)
            if rank and rank not in self._here
        ]
        return (
            f"{len(missing)} of {self._cluster.size} workers did not come within "
            f"{self._timeout_s:g} s: {', '.join(missing)}; start them, look at their own output, "
            "or wait longer with TFACCEL_START_TIMEOUT"
        )


def _tell(connections: Sequence[socket.socket], body: Mapping[str, str], payload: bytes) -> None:
    """Sends verdict and payload to all, then lets each hang up first.

    Whoever hangs up first keeps the address busy for a minute (TIME_WAIT): not rank 0's port.
    """
    message = wire.frame(json.dumps(body).encode()) + wire.frame(payload)
    # A guest that is gone is not our error: what it died of is in its own output.
    for connection in connections:
        with contextlib.suppress(OSError):
            connection.settimeout(FAREWELL_S)
            connection.sendall(message)
    for connection in connections:
        with contextlib.suppress(OSError):
            while connection.recv(1 << 12):
                pass
