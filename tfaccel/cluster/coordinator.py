"""The coordinator of a job: a process next to the chief that detects failures and serves PMI.

    python -m tfaccel.cluster.coordinator SIZE [ADDRESS [STALL_TIMEOUT]]      (prints its port)

A connection must present the secret of the job, which the ranks get at the rendezvous, and each
rank has one connection of each kind, so no other process can impersonate it. Unidentified
connections are limited in number and closed early (`unidentified`), and line length is limited.

It is a separate process because MPI blocks Python while it starts, and because a stopped chief
cannot report that it is stopped. Every rank has a connection to it that detects failures, which
neither MPI nor TensorFlow's collectives attribute to a worker: one that breaks before its rank has
reported its end is reported to all others at once, and the heartbeats of the ranks over it show
which of them holds up the others (`stalls.py`). Over a second connection MPI requests the addresses
of the other ranks (`pmi`).
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Collection
from dataclasses import dataclass, field

from tfaccel.cluster import interface
from tfaccel.cluster.pmi import KeyValueStore
from tfaccel.cluster.stalls import StallWatch, WorkerStatus
from tfaccel.cluster.unidentified import Unidentified, abort
from tfaccel.errors import ClusterError

_START_TIMEOUT_S = 30.0
# A machine that vanishes does not break its connections. Ranks send a heartbeat every second; a
# brief link outage is tolerated.
_KEEPALIVE = {"TCP_KEEPIDLE": 3, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 7_000}
UNREACHABLE_ERRORS = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)
UNREACHABLE = "is unreachable: host or network down"
_POLL_INTERVAL_S = 1.0
_LINGER_S = 30.0  # after a job has ended, for ranks that are stopped


_SECRET = "TFACCEL_COORDINATOR_SECRET"
_MAX_LINE_BYTES = 1 << 14  # MPI's lines are 1 KB


def start(
    size: int,
    secret: str = "",
    address: str = interface.EVERYWHERE,
    stall_timeout_s: float = 0.0,
) -> int:
    """Starts a coordinator for `size` ranks next to this process, and returns its port.

    It ends when all ranks have, or when this process does.

    Args:
        size: the number of ranks.
        secret: of the job; letters and digits.
        address: of this machine, where it listens.
        stall_timeout_s: the shortest time without progress that counts as a stall, in seconds; 0 to
            disable.

    Raises:
        ClusterError: it does not start.
    """
    module = "tfaccel.cluster.coordinator"
    command = [sys.executable, "-m", module, str(size), address, str(stall_timeout_s)]
    # This end of its stdin is never closed: end of file means that this process has ended. It runs
    # in its own session, since a launcher may kill this one as soon as this worker is done, while
    # others still need the coordinator.
    process = subprocess.Popen(
        command,
        env={**os.environ, _SECRET: secret},  # arguments are visible to all users of the machine
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
        rank: the calling rank.
        kind: ``"pmi"`` or ``"liveness"``.
        secret: of the job.

    Raises:
        ClusterError: no response.
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


@dataclass(eq=False)
class _Connection:
    connection: socket.socket
    received: bytearray = field(default_factory=bytearray)
    kind: str = ""
    rank: int = -1
    unreachable: bool = False

    def read_lines(self) -> list[str] | None:
        """The lines received; None when the connection is broken, or a line is too long."""
        try:
            chunk = self.connection.recv(1 << 16)
        except OSError as error:
            self.unreachable = error.errno in UNREACHABLE_ERRORS
            return None
        if not chunk:
            return None
        self.received += chunk
        *whole, rest = bytes(self.received).split(b"\n")
        self.received[:] = rest
        if len(rest) > _MAX_LINE_BYTES:
            return None
        return [line.decode(errors="replace") for line in whole]

    def send(self, line: str) -> None:
        # A broken connection is noticed when it is read.
        with contextlib.suppress(OSError):
            self.connection.sendall(line.encode() + b"\n")


class Coordinator:
    """Serves the connections of `size` ranks."""

    def __init__(self, size: int, secret: str = "", stall_timeout_s: float = 0.0) -> None:
        self._watch = StallWatch(size, stall_timeout_s)
        self._ended_at: float | None = None
        self._checked_at = time.monotonic()
        self._secret = secret.encode()
        self._store = KeyValueStore(size, f"tfaccel-{uuid.uuid4().hex}")
        self._size = size
        self._connections: dict[tuple[str, int], _Connection] = {}
        self._done: set[int] = set()
        self._left: set[int] = set()
        self._connected: set[int] = set()
        self._disconnected_ranks: set[int] = set()
        self._unidentified: Unidentified[_Connection] = Unidentified(2 * size)

    def serve(self, listener: socket.socket) -> None:
        """Serves until every rank's detector is closed, and MPI has ended too.

        MPI disconnects when the process of a rank exits, after its Python interpreter has.
        """
        with selectors.DefaultSelector() as waiting:
            waiting.register(listener, selectors.EVENT_READ)
            waiting.register(sys.stdin, selectors.EVENT_READ)
            chief_ended = False
            while len(self._disconnected_ranks) < self._size or any(
                kind == "pmi" for kind, _ in self._connections
            ):
                if chief_ended and not self._connections:
                    return  # whoever has not connected by now will not
                if self._ended_at is not None and time.monotonic() > self._ended_at + _LINGER_S:
                    return
                seconds = self._unidentified.seconds_left()
                wait = _POLL_INTERVAL_S if seconds is None else min(seconds, _POLL_INTERVAL_S)
                for key, _ in waiting.select(wait):
                    if key.fileobj is listener:
                        self._accept(waiting, listener)
                    elif key.fileobj is sys.stdin:
                        waiting.unregister(sys.stdin)
                        chief_ended = True
                        if 0 not in self._connected:
                            return
                    elif not self._receive(key.data):
                        waiting.unregister(key.fileobj)
                        self._disconnected(key.data)
                for connection in self._unidentified.pop_overdue():
                    waiting.unregister(connection.connection)
                    abort(connection.connection)
                self._report_stalls()

    def _accept(self, waiting: selectors.BaseSelector, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
            keep_alive(connection)
        except OSError:  # already gone
            return
        peer = _Connection(connection)
        waiting.register(connection, selectors.EVENT_READ, peer)
        self._unidentified.add(peer)

    def _report_stalls(self) -> None:
        """Reports stalls from the heartbeats of the ranks, if it is time to check."""
        now = time.monotonic()
        if self._ended_at is not None or now < self._checked_at + _POLL_INTERVAL_S:
            return
        if now > self._checked_at + 3 * _POLL_INTERVAL_S:
            self._checked_at = now  # this process was held up itself, and the ranks perhaps too
            self._watch.reset_clock(now)
            return
        self._checked_at = now
        for finding in self._watch.find(now):
            fields = {"ranks": finding.ranks, "why": finding.why, "stacks": finding.stacks}
            text = json.dumps(fields)
            if finding.ends:
                self._ended_at = now
                self._broadcast(-1, f"stall {text}")
                return
            # Sent to an unreachable rank, it would restart TCP's timeout.
            self._broadcast(-1, f"slow {text}", finding.ranks if finding.silent else ())

    def _receive(self, connection: _Connection) -> bool:
        lines = connection.read_lines()
        for text in lines or ():
            if not connection.kind:
                kind, number, secret = (*text.split(" "), "", "", "")[:3]
                rank = int(number) if number.isdigit() else -1
                known = kind in ("pmi", "liveness") and 0 <= rank < self._size
                known = known and hmac.compare_digest(secret.encode(), self._secret)
                if not known or (kind, rank) in self._connections:
                    return False  # a port scan, or a second connection of a connected rank
                connection.kind, connection.rank = kind, rank
                self._unidentified.discard(connection)
                self._connections[connection.kind, connection.rank] = connection
                if connection.kind == "liveness":
                    self._connected.add(connection.rank)
                    for rank in self._disconnected_ranks - self._left:
                        connection.send(f"gone {rank}")
            elif connection.kind == "pmi":
                for rank, answer in self._store.answer(connection.rank, text).items():
                    self._connections["pmi", rank].send(answer)
            elif text.startswith("at "):
                status = WorkerStatus.parse(text[3:])
                if status is not None and connection.rank not in self._done:
                    self._watch.record_status(connection.rank, status, time.monotonic())
            elif text.startswith("stop "):
                self._done.update(range(self._size))
                self._left.update(range(self._size))  # exits from now on are no failures
                self._broadcast(connection.rank, f"stop {connection.rank} {text[5:]}")
            elif text.startswith("done "):
                self._done.add(connection.rank)
                self._watch.end(connection.rank)
                self._broadcast(connection.rank, f"done {connection.rank} {text[5:]}")
                if len(self._done) == self._size:
                    self._broadcast(-1, "end")
            elif text == "left":
                self._left.add(connection.rank)
        return lines is not None

    def _disconnected(self, peer: _Connection) -> None:
        peer.connection.close()
        self._unidentified.discard(peer)
        if not peer.kind:
            return
        self._connections.pop((peer.kind, peer.rank), None)
        if peer.kind == "liveness" or (peer.kind == "pmi" and peer.rank not in self._connected):
            self._disconnected_ranks.add(peer.rank)
            if peer.rank not in self._left:
                self._broadcast(peer.rank, f"gone {peer.rank}{self._disconnect_reason(peer)}")
                if len(self._done) == self._size:
                    self._open_last_barrier(peer.rank)
            self._watch.forget(peer.rank)

    def _open_last_barrier(self, lost: int) -> None:
        """Releases the others from MPI_Finalize, where no Python code runs that could end them."""
        for rank, answer in self._store.lose(lost).items():
            if ("pmi", rank) in self._connections:
                self._connections["pmi", rank].send(answer)

    def _disconnect_reason(self, peer: _Connection) -> str:
        place = self._watch.place(peer.rank)
        if not place and not peer.unreachable:
            return ""
        why = UNREACHABLE if peer.unreachable else "has exited or disconnected"
        return f" {why}; it was {place}" if place else f" {why}"

    def _broadcast(self, excluded: int, text: str, also: Collection[int] = ()) -> None:
        for (kind, rank), connection in self._connections.items():
            if kind == "liveness" and rank != excluded and rank not in also:
                connection.send(text)


def main() -> None:
    """Runs a coordinator; its port is its first line of output."""
    # Ctrl-C reaches every process of a terminal; this one ends after the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    size = int(sys.argv[1])
    address = sys.argv[2] if len(sys.argv) > 2 else interface.EVERYWHERE
    stall_timeout_s = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
    listener = interface.listen(address, 0, 2 * size)
    print(listener.getsockname()[1], flush=True)
    sys.stdout.close()
    Coordinator(size, os.environ.pop(_SECRET, ""), stall_timeout_s).serve(listener)


if __name__ == "__main__":
    main()
