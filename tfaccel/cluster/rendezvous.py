"""The workers meet over TCP before TensorFlow's own server starts.

TensorFlow's leader waits without limit for a missing worker, and its server pairs with whoever
calls: a rank 0 left over from an old job trains with rank 1 of a new one, and both succeed. So
the workers first shake hands on the very address that TensorFlow will use: rank 0 listens, the
others say which job, which size, which rank and which versions they are, and all hear the same
answer. It keeps mistakes out, not enemies: nothing here is encrypted or authenticated.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import selectors
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tfaccel
from tfaccel.cluster import wire
from tfaccel.cluster.cluster import Cluster
from tfaccel.errors import ClusterError

MAX_PAYLOAD_BYTES = 1 << 20

_MAX_HELLO_BYTES = 1 << 14
_ATTEMPT_S = 5.0
_FAREWELL_S = 5.0


@dataclass(frozen=True)
class Meeting:
    """What all workers know once they have met.

    Attributes:
        payload: rank 0's bytes, the same on every worker.
        waited_s: how long this worker waited for the others, in seconds.
    """

    payload: bytes
    waited_s: float


def meet(
    cluster: Cluster,
    *,
    timeout_s: float = 300.0,
    job_id: str = "",
    payload: bytes = b"",
    versions: Mapping[str, str] | None = None,
) -> Meeting:
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

    >>> meet(Cluster(("localhost:2222",), 0, "example"), payload=b"seed 7").payload
    b'seed 7'
    """
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ClusterError(
            f"the payload of the rendezvous has {len(payload)} bytes; "
            f"expected at most {MAX_PAYLOAD_BYTES}"
        )
    if cluster.size == 1:
        return Meeting(payload, 0.0)
    about = _About(
        job_id, cluster.size, dict(installed_versions() if versions is None else versions)
    )
    started = time.monotonic()
    # Every worker holds its own port while it waits: TensorFlow will need it, and a port that
    # somebody else has is better said now.
    with _listen(cluster) as listener:
        if cluster.rank == 0:
            _Host(cluster, about, started, timeout_s).gather(listener, payload)
        else:
            payload = _join(cluster, about, started, timeout_s)
    return Meeting(payload, time.monotonic() - started)


def installed_versions() -> dict[str, str]:
    """The versions of tfaccel, TensorFlow and Keras here, without importing the latter two."""
    return {
        "tfaccel": tfaccel.__version__,
        "tensorflow": _version("tensorflow", "tensorflow", "tensorflow-cpu", "tf-nightly"),
        "keras": _version("keras", "keras", "keras-nightly"),
    }


def _version(module: str, *distributions: str) -> str:
    loaded = getattr(sys.modules.get(module), "__version__", None)
    if loaded is not None:
        return str(loaded)
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "not installed"


@dataclass(frozen=True)
class _About:
    """What must be the same on all workers of a job."""

    job_id: str
    size: int
    versions: dict[str, str]

    def differences(self, hello: Mapping[str, Any]) -> list[str]:
        """What a worker's hello says otherwise than we do."""
        pairs = [
            ("job id", hello.get("job_id"), self.job_id),
            ("number of workers", hello.get("size"), self.size),
        ]
        theirs = hello.get("versions")
        theirs = theirs if isinstance(theirs, dict) else {}
        pairs += [
            (name, theirs.get(name, "unknown"), self.versions.get(name, "unknown"))
            for name in sorted({*theirs, *self.versions})
        ]
        return [f"{what} {its!r} against {ours!r}" for what, its, ours in pairs if its != ours]


@dataclass
class _Guest:
    """A connection to rank 0, and what has come through it so far."""

    connection: socket.socket
    peer: str
    received: bytearray = field(default_factory=bytearray)
    rank: int | None = None


class _Host:
    """Rank 0's side: collects one guest a rank, then answers all of them at once."""

    def __init__(self, cluster: Cluster, about: _About, started: float, timeout_s: float) -> None:
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


def _join(cluster: Cluster, about: _About, started: float, timeout_s: float) -> bytes:
    """The other ranks' side: call rank 0 until it answers."""
    host, port = _host_and_port(cluster.workers[0])
    hello = json.dumps(
        {
            "rank": cluster.rank,
            "job_id": about.job_id,
            "size": about.size,
            "versions": about.versions,
        }
    ).encode()
    deadline = started + timeout_s
    pause, last = 0.05, "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=min(left, _ATTEMPT_S)) as line:
                # With nobody listening, a local call can by chance reach its own end.
                if line.getsockname() == line.getpeername():
                    raise ConnectionRefusedError("nobody is listening")
                line.sendall(wire.frame(hello))
                # Rank 0 was there before this call, so its deadline comes before this one.
                return _hear_answer(cluster, line, time.monotonic() + timeout_s + _FAREWELL_S)
        except wire.ForeignError:
            raise ClusterError(
                f"worker {cluster.rank} called worker 0 at {cluster.workers[0]} and something "
                "other than tfaccel answered; expected worker 0 of this job: stop what is left "
                "of an earlier job there, or choose another port"
            ) from None
        except OSError as error:
            last = error.strerror or str(error) or type(error).__name__
        time.sleep(max(0.0, min(pause, deadline - time.monotonic())))
        pause = min(pause * 1.5, 1.0)
    raise ClusterError(
        f"worker {cluster.rank} ({cluster.address}) waited {timeout_s:g} s and did not reach "
        f"worker 0 at {cluster.workers[0]} ({last}); start it, look at its own output, "
        "or wait longer with TFACCEL_START_TIMEOUT"
    )


def _hear_answer(cluster: Cluster, line: socket.socket, deadline: float) -> bytes:
    """Rank 0's payload, from two frames: a verdict, then the payload."""
    received = bytearray()
    verdict = _read_frame(line, received, deadline)
    error = wire.as_object(verdict).get("error")
    if error is not None:
        raise ClusterError(f"worker {cluster.rank} heard from worker 0: {error}")
    return _read_frame(line, received, deadline)


def _read_frame(line: socket.socket, received: bytearray, deadline: float) -> bytes:
    while True:
        body = wire.first_frame(received, MAX_PAYLOAD_BYTES)
        if body is not None:
            del received[: len(wire.frame(body))]
            return body
        line.settimeout(max(0.01, deadline - time.monotonic()))
        chunk = line.recv(1 << 16)
        if not chunk:
            raise ConnectionResetError("it hung up before it answered")
        received += chunk


def _tell(connections: Sequence[socket.socket], body: Mapping[str, str], payload: bytes) -> None:
    """Sends verdict and payload to all, then lets each hang up first.

    Whoever hangs up first keeps the address busy for a minute (TIME_WAIT): not rank 0's port.
    """
    message = wire.frame(json.dumps(body).encode()) + wire.frame(payload)
    # A guest that is gone is not our error: what it died of is in its own output.
    for connection in connections:
        with contextlib.suppress(OSError):
            connection.settimeout(_FAREWELL_S)
            connection.sendall(message)
    for connection in connections:
        with contextlib.suppress(OSError):
            while connection.recv(1 << 12):
                pass


def _listen(cluster: Cluster) -> socket.socket:
    """Takes our own port on all interfaces, as TensorFlow's server will."""
    _, port = _host_and_port(cluster.address)
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


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


__all__: Sequence[str] = ("MAX_PAYLOAD_BYTES", "Meeting", "installed_versions", "meet")
