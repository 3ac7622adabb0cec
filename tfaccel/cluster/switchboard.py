"""The process beside the chief through which the ranks of an MPI job know of each other.

    python -m tfaccel.cluster.switchboard SIZE      (prints its port)

A line must present the secret of the job, which the ranks hear when they meet, and a rank has one
of each kind: nobody else can speak for it.

It is a process of its own because MPI holds Python still while it starts. Every rank has two
lines to it. Over the first MPI asks for the others' addresses (`pmi`). The second is a lifeline:
MPI alone does not notice that a rank is gone, and the others would wait in it forever. Here a line
that breaks before its rank said goodbye is told to all others at once.
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

from tfaccel.cluster.pmi import KeyValues
from tfaccel.errors import ClusterError

_START_S = 30.0
# A machine that vanishes breaks no line by itself: ask after 5 s of silence, three times.
_KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 10_000}


_SECRET = "TFACCEL_SWITCHBOARD_SECRET"


def start(size: int, secret: str = "") -> int:
    """Starts a switchboard for `size` ranks beside this process, and returns its port.

    It ends when all ranks have, or when this process does.

    Args:
        size: the number of ranks.
        secret: of the job; letters and digits.

    Raises:
        ClusterError: it does not come up.
    """
    command = [sys.executable, "-m", "tfaccel.cluster.switchboard", str(size)]
    # Our end of its input is never closed: it hears of our end by the end of its input.
    # In a session of its own, since a launcher may end ours as soon as this worker is done, while
    # others still need the switchboard.
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
    said = process.stdout.readline().strip()
    if not said.isdigit():
        raise ClusterError(
            f"tfaccel: the switchboard of this job did not start (it said {said!r}); expected its "
            "port: look above for its own words."
        )
    return int(said)


_running: list[subprocess.Popen[str]] = []


def call(host: str, port: int, rank: int, kind: str, secret: str = "") -> socket.socket:
    """Opens a line.

    Args:
        host: where the switchboard is.
        port: its port.
        rank: who calls.
        kind: ``"pmi"`` or ``"life"``.
        secret: of the job.

    Raises:
        ClusterError: nobody answers.
    """
    try:
        line = socket.create_connection((host, port), timeout=_START_S)
    except OSError as error:
        raise ClusterError(
            f"tfaccel: worker {rank} did not reach the switchboard beside worker 0 at "
            f"{host}:{port} ({error}); expected workers to reach each other on any port."
        ) from error
    line.settimeout(None)
    keep_alive(line)
    line.sendall(f"{kind} {rank} {secret}".rstrip().encode() + b"\n")
    return line


def keep_alive(line: socket.socket) -> None:
    """Makes `line` break when the machine at its other end is gone."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


@dataclass
class _Line:
    connection: socket.socket
    received: bytearray = field(default_factory=bytearray)
    kind: str = ""
    rank: int = -1

    def lines(self) -> list[str] | None:
        """What has come, by lines; None when the line is broken."""
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

    def say(self, line: str) -> None:
        # When it is broken, its own end is seen as it is read.
        with contextlib.suppress(OSError):
            self.connection.sendall(line.encode() + b"\n")


class Switchboard:
    """Serves the lines of `size` ranks."""

    def __init__(self, size: int, secret: str = "") -> None:
        self._secret = secret.encode()
        self._table = KeyValues(size, f"tfaccel-{uuid.uuid4().hex}")
        self._size = size
        self._lines: dict[tuple[str, int], _Line] = {}
        self._done: set[int] = set()
        self._came: set[int] = set()
        self._ended: set[int] = set()

    def serve(self, listener: socket.socket) -> None:
        """Serves until every rank's lifeline is closed, and MPI has ended too.

        MPI says its last word when the process of a rank ends, after Python has ended in it.
        """
        with selectors.DefaultSelector() as waiting:
            waiting.register(listener, selectors.EVENT_READ)
            waiting.register(sys.stdin, selectors.EVENT_READ)
            while len(self._ended) < self._size or any(kind == "pmi" for kind, _ in self._lines):
                for key, _ in waiting.select():
                    if key.fileobj is listener:
                        connection, _ = listener.accept()
                        keep_alive(connection)
                        waiting.register(connection, selectors.EVENT_READ, _Line(connection))
                    elif key.fileobj is sys.stdin:
                        waiting.unregister(sys.stdin)  # the chief has ended
                        if 0 not in self._came:
                            return
                    elif not self._hear(key.data):
                        waiting.unregister(key.fileobj)
                        self._broken(key.data)

    def _hear(self, line: _Line) -> bool:
        said = line.lines()
        for words in said or ():
            if not line.kind:
                kind, number, secret = (*words.split(" "), "", "", "")[:3]
                rank = int(number) if number.isdigit() else -1
                known = kind in ("pmi", "life") and 0 <= rank < self._size
                known = known and hmac.compare_digest(secret.encode(), self._secret)
                if not known or (kind, rank) in self._lines:
                    return False  # a port scan, or somebody who speaks for a rank that is here
                line.kind, line.rank = kind, rank
                self._lines[line.kind, line.rank] = line
                if line.kind == "life":
                    self._came.add(line.rank)
                    for rank in self._ended - self._done:
                        line.say(f"gone {rank}")
            elif line.kind == "pmi":
                for rank, answer in self._table.answer(line.rank, words).items():
                    self._lines["pmi", rank].say(answer)
            elif words.startswith("done "):
                self._done.add(line.rank)
                self._tell(line.rank, f"done {line.rank} {words[5:]}")
                if len(self._done) == self._size:
                    self._tell(-1, "end")
        return said is not None

    def _broken(self, line: _Line) -> None:
        line.connection.close()
        if not line.kind:
            return
        self._lines.pop((line.kind, line.rank), None)
        if line.kind == "life" or (line.kind == "pmi" and line.rank not in self._came):
            self._ended.add(line.rank)
            if line.rank not in self._done:
                self._tell(line.rank, f"gone {line.rank}")

    def _tell(self, but: int, words: str) -> None:
        for (kind, rank), line in self._lines.items():
            if kind == "life" and rank != but:
                line.say(words)


def main() -> None:
    """Runs a switchboard; its port is its first line of output."""
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
    Switchboard(size, os.environ.pop(_SECRET, "")).serve(listener)


if __name__ == "__main__":
    main()
