"""Whoever does not hold the job's secret ends nothing, holds nothing up and is not remembered."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest

from tests.cluster.test_rendezvous import assert_free, call, free_addresses, hello, meet_all
from tfaccel.cluster import Cluster, coordinator, framing, interface, job_secret
from tfaccel.cluster.unidentified import LIMIT, Unidentified
from tfaccel.errors import ClusterError
from tfaccel.strategies import options, worker_startup

SECRET = "5ecre7"
Came = dict[int, Any]


@contextlib.contextmanager
def leader(size: int = 2, **options: Any) -> Iterator[tuple[tuple[str, ...], Came]]:
    """Rank 0 of a job with a secret, in a thread, while the block runs; then what came of it."""
    workers, came = free_addresses(size), Came()
    chief = {0: {"secret": SECRET, "payload": b"all", **options}}
    thread = threading.Thread(target=lambda: came.update(meet_all(workers, chief)))
    thread.start()
    try:
        yield workers, came
    finally:
        thread.join(30)


def calling(workers: tuple[str, ...]) -> socket.socket:
    host, _, port = workers[0].rpartition(":")
    return call(host, int(port))


def refused(line: socket.socket) -> bool:
    """Whether rank 0 shows nothing, or closes the connection."""
    with contextlib.suppress(ConnectionResetError):
        return line.recv(1 << 12) in (framing.frame(b""), b"")
    return True


@pytest.mark.parametrize("size", [2, 4])
def test_workers_with_the_secret_meet(size: int) -> None:
    workers = free_addresses(size)
    given: dict[int, dict[str, Any]] = {rank: {"payload": b"%d" % rank} for rank in range(size)}
    came = meet_all(workers, given, secret=SECRET)
    assert came == dict.fromkeys(range(size), b"0")
    assert_free(workers)


@pytest.mark.parametrize("other", [{"secret": ""}, {"secret": "x"}, {"job_id": "another"}])
def test_who_does_not_hold_it_hears_so_at_once_and_the_job_goes_on(other: dict[str, str]) -> None:
    with leader(timeout_s=60.0) as (workers, came):
        own: dict[str, Any] = {"secret": SECRET, **other}
        (stranger,) = meet_all(workers, {1: own}).values()
        assert "worker 1 and what answered at 127.0.0.1:" in str(stranger)
        assert "do not hold the same secret" in str(stranger)
        came.update(meet_all(workers, {1: {"secret": SECRET}}))
    assert came == {0: b"all", 1: b"all"}
    assert_free(workers)


def test_strangers_who_called_are_named_with_those_who_did_not() -> None:
    with leader(timeout_s=0.7) as (workers, came), calling(workers) as line:
        line.sendall(hello(line, rank=1, size=2))
        assert refused(line)
    assert "(connection from 127.0.0.1 rejected: wrong job secret)" in str(came[0])


def test_a_stranger_can_speak_for_no_rank_nor_end_the_job() -> None:
    with leader(timeout_s=60.0) as (workers, came):
        lies = ({"versions": {}}, {"size": 9}, {"rank": 0}, {"rank": "x"}, {"job_id": 1})
        for lie in lies:
            with calling(workers) as line:
                line.sendall(hello(line, **{"rank": 1, "size": 2, **lie}))  # type: ignore[arg-type]
                assert refused(line)
        came.update(meet_all(workers, {1: {"secret": SECRET}}))
    assert [type(came[rank]) for rank in (0, 1)] == [bytes] * 2


def test_what_was_heard_elsewhere_cannot_be_said_again() -> None:
    with leader(timeout_s=60.0) as (workers, came):
        with calling(workers) as first, calling(workers) as second:
            second.recv(1 << 10)
            second.sendall(hello(first, rank=1, size=2, secret=SECRET))
            assert refused(second)
        came.update(meet_all(workers, {1: {"secret": SECRET}}))
    assert came[0] == b"all"


def test_a_worker_says_nothing_to_a_stranger_at_rank_0s_address() -> None:
    """Who asks the same question again cannot use the answer; nor is an answer of its own taken."""
    heard = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as server:
        workers = (f"127.0.0.1:{server.getsockname()[1]}", *free_addresses(1))

        def impostor() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(framing.frame(bytes(job_secret.NONCE_BYTES)))
                heard.extend(connection.recv(1 << 14))
                answer = job_secret.sign(b"", bytes(job_secret.NONCE_BYTES) + b"verdict", b"{}")
                connection.sendall(framing.frame(answer) * 2)
                connection.recv(1)

        thread = threading.Thread(target=impostor)
        thread.start()
        came = meet_all(workers, {1: {"secret": SECRET}})
        thread.join(30)
    assert isinstance(came[1], ClusterError)
    assert "do not hold the same secret" in str(came[1])
    assert SECRET.encode() not in heard
    assert b'"job_id": ""' in heard


def test_those_who_say_nothing_and_those_who_say_too_much_hold_nobody_up() -> None:
    with (
        mock.patch("tfaccel.cluster.unidentified.SECONDS", 0.3),
        leader(timeout_s=60.0) as (workers, came),
        contextlib.ExitStack() as held,
    ):
        lines = [held.enter_context(calling(workers)) for _ in range(20)]
        for line in lines[1::2]:  # a byte now and then
            line.sendall(b"t")
        lines[2].sendall(framing.frame(bytes(1 << 15)))
        assert all(_closed_after_the_question(line) for line in lines)
        came.update(meet_all(workers, {1: {"secret": SECRET}}))
    assert [type(came[rank]) for rank in (0, 1)] == [bytes] * 2
    assert_free(workers)


def test_one_who_came_and_goes_on_talking_is_not_remembered() -> None:
    with leader(3, timeout_s=60.0) as (workers, came), calling(workers) as line:
        line.sendall(hello(line, rank=1, size=3, secret=SECRET))
        for _ in range(64):
            line.sendall(bytes(1 << 16))
        came.update(meet_all(workers, {2: {"secret": SECRET}}))
        assert b"all" in line.recv(1 << 14)
    assert came[0] == b"all"


def test_the_unidentified_are_few_and_their_time_is_short() -> None:
    now = [0.0]
    waiting: Unidentified[int] = Unidentified(size=2, seconds=5.0, clock=lambda: now[0])
    assert waiting.seconds_left() is None
    for number in range(LIMIT + 4):
        waiting.add(number)
    assert waiting.pop_overdue() == [0, 1], "the oldest"
    now[0] = 3.0
    waiting.add(1000)
    waiting.discard(2)
    assert waiting.seconds_left() == 2.0
    now[0] = 5.0
    assert waiting.pop_overdue() == list(range(3, LIMIT + 4))
    assert waiting.seconds_left() == 3.0


# --- the coordinator ---------------------------------------------------------------------------


def test_a_coordinator_leaves_strangers_behind() -> None:
    script = "from tfaccel.cluster import unidentified; unidentified.SECONDS = 0.5; "
    script += "from tfaccel.cluster import coordinator; coordinator.main()"
    process = subprocess.Popen(
        [sys.executable, "-c", script, "2", "127.0.0.1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"TFACCEL_COORDINATOR_SECRET": "ab", "PYTHONPATH": ":".join(sys.path)},
    )
    assert process.stdout is not None
    port = int(process.stdout.readline())
    with contextlib.ExitStack() as connections:

        def stranger(*said: bytes) -> socket.socket:
            line = connections.enter_context(
                socket.create_connection(("127.0.0.1", port), timeout=20)
            )
            for one in said:
                line.sendall(one)
            return line

        silent, slow = stranger(), stranger(b"live")
        endless = stranger(b"x" * (1 << 17))
        ranks = [
            connections.enter_context(
                coordinator.connect("127.0.0.1", port, rank, "liveness", "ab")
            )
            for rank in (0, 1)
        ]
        assert all(map(_closed, (silent, slow, endless)))
        ranks[0].sendall(b"done 3\n")
        assert ranks[1].recv(100) == b"done 0 3\n", "it has heard both all the time"
    process.communicate(timeout=20)
    assert process.returncode == 0


def _closed_after_the_question(line: socket.socket) -> bool:
    with contextlib.suppress(ConnectionResetError):
        while line.recv(1 << 10):
            pass
    return True


def _closed(line: socket.socket) -> bool:
    with contextlib.suppress(ConnectionResetError):
        return line.recv(1) == b""
    return True


# --- where we listen ---------------------------------------------------------------------------


def addresses(*workers: str) -> Cluster:
    return Cluster(workers, 0, "TF_CONFIG")


def test_a_job_of_one_machine_listens_on_loopback() -> None:
    assert interface.own_address(addresses("127.0.0.1:1", "127.0.0.1:2")) == "127.0.0.1"
    assert interface.own_address(addresses("localhost:1", "[::1]:2")) in ("127.0.0.1", "::1")
    with leader(timeout_s=60.0) as (workers, came):
        calling(workers).close()
        port = int(workers[0].rpartition(":")[2])
        elsewhere = _address_of_this_machine()
        if elsewhere:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((elsewhere, port), timeout=5)
        came.update(meet_all(workers, {1: {"secret": SECRET}}))
    assert came[0] == b"all"


def test_others_listen_on_their_own_address_alone() -> None:
    own = _address_of_this_machine()
    if not own:
        pytest.skip("this machine has no address but loopback")
    assert interface.own_address(addresses(f"{own}:1", "192.0.2.1:2")) == own


@pytest.mark.parametrize("host", ["127.0.1.1", "198.51.100.7", "no-such-host.invalid"])
def test_where_nobody_knows_it_is_everywhere(host: str) -> None:
    """A name that means loopback here alone, an address behind a NAT, a name unknown here."""
    assert interface.own_address(addresses(f"{host}:1", "192.0.2.1:2")) == interface.EVERYWHERE


def _address_of_this_machine() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return ""
        return str(probe.getsockname()[0])


@pytest.mark.parametrize(
    ("workers", "secret", "warned"),
    [
        (("127.0.0.1:1", "127.0.0.1:2"), "", False),
        (("192.0.2.1:1", "192.0.2.2:1"), "", True),
        (("192.0.2.1:1", "192.0.2.2:1"), "5e", False),
    ],
)
def test_many_machines_without_a_secret_are_told(
    workers: tuple[str, ...], secret: str, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(job_secret.VARIABLE, secret)
    with (
        mock.patch.object(worker_startup, "rendezvous") as met,
        mock.patch.object(worker_startup.logging, "warning") as warning,
    ):
        worker_startup.join_workers(addresses(*workers), options.Options(), b"")
    assert met.call_args.kwargs["secret"] == secret
    assert warning.called == warned
