"""The coordinator of an MPI job: a process beside the chief that serves PMI and detects failures.

    python -m tfaccel.cluster.coordinator SIZE      (prints its port)

A connection must present the secret of the job, which the ranks hear when they meet, and a rank has
one of each kind: nobody else can act for it.

It is a process of its own because MPI holds Python still while it starts. Every rank has two
connections to it. Over the first MPI requests the others' addresses (`pmi`). The second detects
failures: MPI alone does not notice that a rank is gone, and the others would wait in it forever.
A connection that breaks before its rank has reported its end is reported to all others at once.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import selectors
import signal
import socket
import subprocess
import sys
import uuid
from dataclasses import dataclass, field

from tfaccel.cluster.pmi import KeyValueStore
from tfaccel.errors import ClusterError

_START_TIMEOUT_S = 30.0
# A machine that vanishes breaks no connection by itself: ask after 5 s of silence, three times.
_KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 10_000}


_SECRET = "TFACCEL_COORDINATOR_SECRET"


def start(size: int, secret: str = "") -> int:
    """Starts a coordinator for `size` ranks beside this process, and returns its port.

    It ends when all ranks have, or when this process does.

    Args:
        size: the number of ranks.
        secret: of the job; letters and digits.

    Raises:
        ClusterError: it does not come up.
    """
    command = [sys.executable, "-m", "tfaccel.cluster.coordinator", str(size)]
    # Our end of its input is never closed: the end of its input tells it of our end.
    # In a session of its own, since a launcher may end ours as soon as this worker is done, while
    # others still need the coordinator.
    process = subprocess.Popen(
        command,
        env={**os.environ, _SECRET: secret},  # arguments are seen by everybody on the machine
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _running.append(process)
    assert process.stdout is not None
    answer = process.stdout.readline().strip()
    if not answer.isdigit():
        raise ClusterError(
            f"tfaccel: the coordinator of this job did not start (it printed {answer!r}); expected "
            "its port: see its own output above."
        )
    return int(answer)


_running: list[subprocess.Popen[str]] = []


def connect(host: str, port: int, rank: int, kind: str, secret: str = "") -> socket.socket:
    """Opens a connection.

    Args:
        host: where the coordinator is.
        port: its port.
        rank: who calls.
        kind: ``"pmi"`` or ``"liveness"``.
        secret: of the job.

    Raises:
        ClusterError: nobody answers.
    """
    try:
        connection = socket.create_connection((host, port), timeout=_START_TIMEOUT_S)
    except OSError as error:
        raise ClusterError(
            f"tfaccel: worker {rank} did not reach the coordinator beside worker 0 at "
            f"{host}:{port} ({error}); expected workers to reach each other on any port."
        ) from error
    connection.settimeout(None)
    keep_alive(connection)
    connection.sendall(f"{kind} {rank} {secret}".rstrip().encode() + b"\n")
    return connection


def keep_alive(connection: socket.socket) -> None:
    """Makes `connection` break when the machine at its other end is gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


@dataclass
class _Connection:
    connection: socket.socket
    received: bytearray = field(default_factory=bytearray)
    kind: str = ""
    rank: int = -1

    def read_lines(self) -> list[str] | None:
        """What has come, by lines; None when the connection is broken."""
        try:
            chunk = self.connection.recv(1 << 16)
        except OSError:
            return None
        if not chunk:
            return None
        self.received += chunk
        *whole, rest = bytes(self.received).split(b"\n")
        self.received[:] = rest
        return [line.decode(errors="replace") for line in whole]

    def send(self, line: str) -> None:
        # When it is broken, its own end is seen as it is read.
        with contextlib.suppress(OSError):
            self.connection.sendall(line.encode() + b"\n")


class Coordinator:
    """Serves the connections of `size` ranks."""

    def __init__(self, size: int, secret: str = "") -> None:
        self._secret = secret.encode()
        self._store = KeyValueStore(size, f"tfaccel-{uuid.uuid4().hex}")
        self._size = size
        self._connections: dict[tuple[str, int], _Connection] = {}
        self._done: set[int] = set()
        self._connected: set[int] = set()
        self._disconnected_ranks: set[int] = set()

    def serve(self, listener: socket.socket) -> None:
        """Serves until every rank's detector is closed, and MPI has ended too.

        MPI disconnects when the process of a rank ends, after Python has ended in it.
        """
        with selectors.DefaultSelector() as waiting:
            waiting.register(listener, selectors.EVENT_READ)
            waiting.register(sys.stdin, selectors.EVENT_READ)
            while len(self._disconnected_ranks) < self._size or any(
                kind == "pmi" for kind, _ in self._connections
            ):
                for key, _ in waiting.select():
                    if key.fileobj is listener:
                        connection, _ = listener.accept()
                        keep_alive(connection)
                        waiting.register(connection, selectors.EVENT_READ, _Connection(connection))
                    elif key.fileobj is sys.stdin:
                        waiting.unregister(sys.stdin)  # the chief has ended
                        if 0 not in self._connected:
                            return
                    elif not self._receive(key.data):
                        waiting.unregister(key.fileobj)
                        self._disconnected(key.data)

    def _receive(self, connection: _Connection) -> bool:
        lines = connection.read_lines()
        for text in lines or ():
            if not connection.kind:
                kind, number, secret = (*text.split(" "), "", "", "")[:3]
                rank = int(number) if number.isdigit() else -1
                known = kind in ("pmi", "liveness") and 0 <= rank < self._size
                known = known and hmac.compare_digest(secret.encode(), self._secret)
                if not known or (kind, rank) in self._connections:
                    return False  # a port scan, or somebody who speaks for a rank that is here
                connection.kind, connection.rank = kind, rank
                self._connections[connection.kind, connection.rank] = connection
                if connection.kind == "liveness":
                    self._connected.add(connection.rank)
                    for rank in self._disconnected_ranks - self._done:
                        connection.send(f"gone {rank}")
            elif connection.kind == "pmi":
                for rank, answer in self._store.answer(connection.rank, text).items():
                    self._connections["pmi", rank].send(answer)
            elif text.startswith("done "):
                self._done.add(connection.rank)
                self._broadcast(connection.rank, f"done {connection.rank} {text[5:]}")
                if len(self._done) == self._size:
                    self._broadcast(-1, "end")
        return lines is not None

    def _disconnected(self, peer: _Connection) -> None:
        peer.connection.close()
        if not peer.kind:
            return
        self._connections.pop((peer.kind, peer.rank), None)
        if peer.kind == "liveness" or (peer.kind == "pmi" and peer.rank not in self._connected):
            self._disconnected_ranks.add(peer.rank)
            if peer.rank not in self._done:
                self._broadcast(peer.rank, f"gone {peer.rank}")

    def _broadcast(self, excluded: int, text: str) -> None:
        for (kind, rank), connection in self._connections.items():
            if kind == "liveness" and rank != excluded:
                connection.send(text)


def main() -> None:
    """Runs a coordinator; its port is its first line of output."""
    # Ctrl-C reaches every process of a terminal; this one ends after the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    size = int(sys.argv[1])
    try:
        listener = socket.create_server(
            ("", 0), family=socket.AF_INET6, backlog=2 * size, dualstack_ipv6=True
        )
    except (OSError, ValueError):
        listener = socket.create_server(("", 0), backlog=2 * size)
    print(listener.getsockname()[1], flush=True)
    sys.stdout.close()
    Coordinator(size, os.environ.pop(_SECRET, "")).serve(listener)


if __name__ == "__main__":
    main()
