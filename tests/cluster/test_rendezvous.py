from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tfaccel.cluster import (
    Cluster,
    framing,
    job_secret,
    rendezvous,
    rendezvous_client,
    rendezvous_server,
)
from tfaccel.cluster.rendezvous import MAX_PAYLOAD_BYTES, installed_versions
from tfaccel.errors import ClusterError

VERSIONS = {"tfaccel": "1", "tensorflow": "2.21.0", "keras": "3.15.1"}


def free_addresses(count: int) -> tuple[str, ...]:
    with contextlib.ExitStack() as stack:
        listeners = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return tuple(f"127.0.0.1:{one.getsockname()[1]}" for one in listeners)


def meet_all(
    workers: tuple[str, ...], calls: dict[int, dict[str, Any]], **common: Any
) -> dict[int, bytes | ClusterError]:
    """Each rank of `calls` meets in a thread of its own; what came of it, by rank."""
    came: dict[int, bytes | ClusterError] = {}

    def one(rank: int, options: dict[str, Any]) -> None:
        cluster = Cluster(options.pop("workers", workers), rank, "TF_CONFIG")
        options = {"timeout_s": 20.0, "job_id": "job", "versions": VERSIONS, **common, **options}
        try:
            came[rank] = rendezvous(cluster, **options)
        except ClusterError as error:
            came[rank] = error

    threads = [threading.Thread(target=one, args=item) for item in calls.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return came


def assert_free(workers: tuple[str, ...]) -> None:
    """A server without SO_REUSEADDR can bind: not even TIME_WAIT is left."""
    for address in workers:
        with socket.socket() as probe:
            probe.bind(("0.0.0.0", int(address.rpartition(":")[2])))
            probe.listen()


@pytest.fixture
def silent_listener() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("size", [2, 5])
def test_all_get_rank_0s_payload_and_free_ports(size: int) -> None:
    workers = free_addresses(size)
    calls = {rank: {"payload": f'{{"seed": {rank}}}'.encode()} for rank in range(size)}
    came = meet_all(workers, calls)
    assert came == dict.fromkeys(range(size), b'{"seed": 0}')
    assert_free(workers)


def test_one_worker_needs_no_rendezvous_and_no_port(silent_listener: str) -> None:
    assert rendezvous(Cluster((silent_listener,), 0, "TF_CONFIG"), payload=b"x") == b"x"


def test_the_largest_payload_arrives_and_a_larger_one_is_refused() -> None:
    workers = free_addresses(2)
    largest = bytes(range(256)) * (MAX_PAYLOAD_BYTES // 256)
    came = meet_all(workers, {0: {"payload": largest}, 1: {}})
    assert came[1] == largest
    with pytest.raises(ClusterError, match=f"{MAX_PAYLOAD_BYTES + 1} bytes"):
        rendezvous(Cluster(workers, 0, "TF_CONFIG"), payload=largest + b"x")


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        ({"job_id": "old"}, "job id 'old' against 'job'"),
        ({"versions": {**VERSIONS, "keras": "3.14.0"}}, "keras '3.14.0' against '3.15.1'"),
        ({"versions": {**VERSIONS, "tfaccel": "2"}}, "tfaccel '2' against '1'"),
        ({"versions": {"tfaccel": "1", "keras": "3.15.1"}}, "tensorflow 'unknown' against"),
    ],
)
def test_a_worker_that_differs_is_named_on_all_sides(odd: dict[str, Any], says: str) -> None:
    workers = free_addresses(3)
    came = meet_all(workers, {0: {}, 1: odd, 2: {}}, timeout_s=0.7)
    for rank in (0, 1):
        assert isinstance(came[rank], ClusterError)
        assert f"worker 1 ({workers[1]}) differs from worker 0" in str(came[rank])
        assert says in str(came[rank])
        assert "\n" not in str(came[rank])
    assert isinstance(came[2], ClusterError)
    assert_free(workers)


def test_a_worker_of_another_size_is_refused_on_both_sides() -> None:
    workers = free_addresses(3)
    came = meet_all(workers, {0: {"workers": workers[:2]}, 1: {}})
    assert all("number of workers 3 against 2" in str(came[rank]) for rank in (0, 1))


def test_a_rank_that_comes_twice_is_refused_on_all_sides() -> None:
    # Both call themselves rank 1, on two ports, as two machines would.
    workers = free_addresses(3)
    twin = (workers[0], workers[2], workers[1])
    errors: list[str] = []

    def second() -> None:
        with pytest.raises(ClusterError) as caught:
            rendezvous(Cluster(twin, 1, "TF_CONFIG"), timeout_s=20, job_id="job", versions=VERSIONS)
        errors.append(str(caught.value))

    thread = threading.Thread(target=second)
    thread.start()
    came = meet_all(workers, {0: {}, 1: {}})
    thread.join(30)
    assert len(errors) == 1
    assert all(
        "connected twice, from 127.0.0.1" in text for text in (*errors, *map(str, came.values()))
    )


def test_missing_workers_are_named_to_those_who_came() -> None:
    workers = free_addresses(4)
    came = meet_all(workers, {0: {"timeout_s": 0.5}, 2: {}})
    expected = (
        f"2 of 4 workers did not connect within 0.5 s: worker 1 ({workers[1]}), "
        f"worker 3 ({workers[3]});"
    )
    assert expected in str(came[0])
    assert expected in str(came[2])
    assert_free(workers)


def test_a_missing_leader_is_named_with_the_seconds_waited() -> None:
    workers = free_addresses(2)
    came = meet_all(workers, {1: {"timeout_s": 0.4}})
    assert f"waited 0.4 s and did not reach worker 0 at {workers[0]}" in str(came[1])
    assert "Connection refused" in str(came[1])


@pytest.mark.parametrize("rank", [0, 1])
def test_who_waits_for_long_tells_for_whom(
    rank: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for module in (rendezvous_client, rendezvous_server):
        monkeypatch.setattr(module, "WARN_AFTER_S", 0.1)
    workers = free_addresses(2)
    with caplog.at_level("WARNING", "absl"):
        meet_all(workers, {rank: {"timeout_s": 0.6}})
    (told,) = caplog.messages
    if rank:
        assert f"waited 0.1 s and did not reach worker 0 at {workers[0]}" in told
        assert "(Connection refused, so far)" in told
    else:
        assert f"1 of 2 workers did not connect within 0.1 s: worker 1 ({workers[1]});" in told


@pytest.mark.parametrize("rank", [0, 1])
def test_a_taken_port_is_named_before_anybody_waits(rank: int, silent_listener: str) -> None:
    other = free_addresses(1)[0]
    workers = (silent_listener, other) if rank == 0 else (other, silent_listener)
    port = silent_listener.rpartition(":")[2]
    with pytest.raises(ClusterError, match=f"worker {rank} cannot listen on port {port} .*in use"):
        rendezvous(Cluster(workers, rank, "TF_CONFIG"), timeout_s=60)


def test_a_worker_that_left_may_come_again() -> None:
    workers = free_addresses(2)
    host, _, port = workers[0].rpartition(":")
    came: dict[int, bytes | ClusterError] = {}
    leader = threading.Thread(
        target=lambda: came.update(meet_all((*workers, "127.0.0.1:1"), {0: {"timeout_s": 0.7}}))
    )
    leader.start()
    for _ in range(2):
        with call(host, int(port)) as line:
            line.sendall(hello(line, rank=1, size=3))
    with call(host, int(port)) as line:
        line.sendall(hello(line, rank=1, size=3))
        assert b"did not connect" in line.recv(1 << 12)
    leader.join(30)
    assert "1 of 3 workers did not connect within 0.7 s: worker 2 (127.0.0.1:1);" in str(came[0])


def test_port_scans_are_ignored() -> None:
    workers = free_addresses(2)
    host, _, port = workers[0].rpartition(":")
    came: dict[int, bytes | ClusterError] = {}
    leader = threading.Thread(target=lambda: came.update(meet_all(workers, {0: {}})))
    leader.start()
    for noise in (b"", b"GET / HTTP/1.1\r\n\r\n", b"tfaccel2\xff\xff\xff\xff"):
        with call(host, int(port)) as scan:
            scan.sendall(noise)
    came.update(meet_all(workers, {1: {}}))
    leader.join(30)
    assert [type(came[rank]) for rank in (0, 1)] == [bytes, bytes]


def test_a_worker_that_left_is_not_counted() -> None:
    workers = free_addresses(2)
    came: dict[int, bytes | ClusterError] = {}
    leader = threading.Thread(
        target=lambda: came.update(meet_all((*workers, "127.0.0.1:1"), {0: {"timeout_s": 0.7}}))
    )
    leader.start()
    host, _, port = workers[0].rpartition(":")
    with call(host, int(port)) as line:
        line.sendall(hello(line, rank=1, size=3))
    leader.join(30)
    assert f"worker 1 ({workers[1]}) (connected, then disconnected)" in str(came[0])


def test_another_program_at_the_address_of_worker_0_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        workers = (f"127.0.0.1:{server.getsockname()[1]}", *free_addresses(1))

        def greet() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"\0\0\0\4\0\0\0\0\0")  # HTTP/2, as TensorFlow's server
                connection.recv(1 << 12)

        thread = threading.Thread(target=greet)
        thread.start()
        came = meet_all(workers, {1: {}})
        thread.join(30)
    assert f"called worker 0 at {workers[0]} and something other than tfaccel" in str(came[1])


def test_versions_are_those_of_the_installed_packages() -> None:
    versions = installed_versions()
    assert set(versions) == {"tfaccel", "tensorflow", "keras"}
    assert "not installed" not in versions.values()


def call(host: str, port: int) -> socket.socket:
    """Connects, as soon as somebody listens."""
    for _ in range(200):
        with contextlib.suppress(ConnectionRefusedError):
            return socket.create_connection((host, port), timeout=10)
        time.sleep(0.02)
    raise AssertionError(f"nobody listens at {host}:{port}")


def hello(line: socket.socket, rank: int, size: int, secret: str = "", **fields: Any) -> bytes:
    """What a worker says; a stranger says it with another secret, or to another question."""
    challenge = line.recv(1 << 10)[len(framing.frame(b"")) :]
    said = {"rank": rank, "size": size, "job_id": "job" * (not secret), "versions": VERSIONS}
    content = job_secret.nonce() + json.dumps({**said, **fields}).encode()
    key = job_secret.key(secret, "job")
    return framing.frame(job_secret.sign(key, challenge + b"hello", content))
