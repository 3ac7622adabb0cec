"""Ranks that hear of each other: MPI's table, and the lines that tell who is gone."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from tfaccel.cluster import coordinator
from tfaccel.cluster.failure_detector import FailureDetector
from tfaccel.cluster.pmi import KeyValueStore


def test_a_key_is_found_once_it_is_put() -> None:
    table = KeyValueStore(size=2, name="job")
    assert table.answer(0, "cmd=get kvsname=job key=addr[1]")[0].startswith("cmd=get_result rc=-1")
    table.answer(1, "cmd=put kvsname=job key=addr[1] value=fi_addr#a=b")
    assert table.answer(0, "cmd=get kvsname=job key=addr[1]") == {
        0: "cmd=get_result rc=0 msg=success value=fi_addr#a=b"
    }


def test_a_barrier_opens_for_all_when_the_last_has_come() -> None:
    table = KeyValueStore(size=3)
    assert table.answer(2, "cmd=barrier_in") == {}
    assert table.answer(0, "cmd=barrier_in") == {}
    assert set(table.answer(1, "cmd=barrier_in")) == {0, 1, 2}
    assert table.answer(1, "cmd=barrier_in") == {}  # and is closed again


def test_a_barrier_opens_without_a_lost_rank() -> None:
    table = KeyValueStore(size=2)
    assert table.answer(0, "cmd=barrier_in") == {}
    assert table.lose(1) == {0: "cmd=barrier_out rc=0"}
    assert set(table.answer(0, "cmd=barrier_in")) == {0}


def test_what_it_does_not_know_it_refuses() -> None:
    assert KeyValueStore(size=1).answer(0, "cmd=spawn") == {0: "cmd=spawn rc=-1 msg=not_supported"}


@pytest.fixture
def port() -> Iterator[int]:
    """The port of a running coordinator of two ranks."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tfaccel.cluster.coordinator", "2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    yield int(process.stdout.readline())
    process.communicate(timeout=20)  # it ends by itself, once its ranks have
    assert process.returncode == 0


class Rank:
    """A lifeline that notes what would end its process."""

    def __init__(self, port: int, rank: int) -> None:
        self.why = ""
        self.ended = threading.Event()
        self.line = coordinator.connect("127.0.0.1", port, rank, "liveness")
        self.life = FailureDetector(self.line, ["worker 0", "worker 1"], self._end)

    def _end(self, why: str) -> None:
        self.why = self.why or why
        self.ended.set()


def test_a_lost_rank_is_reported_to_the_others(port: int) -> None:
    first, second = Rank(port, 0), Rank(port, 1)
    first.line.shutdown(socket.SHUT_RDWR)
    assert second.ended.wait(10)
    assert second.why == "worker 0 has exited or disconnected"
    second.line.shutdown(socket.SHUT_RDWR)


def test_a_late_rank_is_told_which_rank_was_lost(port: int) -> None:
    Rank(port, 0).line.shutdown(socket.SHUT_RDWR)
    threading.Event().wait(0.2)
    late = Rank(port, 1)
    assert late.ended.wait(10)
    assert late.why == "worker 0 has exited or disconnected"
    late.line.shutdown(socket.SHUT_RDWR)


def test_a_second_connection_of_a_rank_is_refused(port: int) -> None:
    ranks = [Rank(port, 0), Rank(port, 1)]
    threading.Event().wait(0.2)
    stranger = coordinator.connect("127.0.0.1", port, 1, "liveness")
    assert stranger.recv(1) == b"", "it disconnects"
    assert [rank.ended.wait(0.3) for rank in ranks] == [False, False]
    for rank in ranks:
        rank.line.shutdown(socket.SHUT_RDWR)


def test_a_client_without_the_secret_is_refused() -> None:
    port = coordinator.start(2, "0123abcd")
    for secret in ("", "0123abce"):
        stranger = coordinator.connect("127.0.0.1", port, 1, "liveness", secret)
        assert stranger.recv(1) == b"", "it disconnects"
    lines = [
        coordinator.connect("127.0.0.1", port, rank, "liveness", "0123abcd") for rank in (0, 1)
    ]
    lines[0].shutdown(socket.SHUT_RDWR)
    assert lines[1].recv(100) == b"gone 0\n"
    lines[1].close()


def test_ranks_that_end_alike_end_in_peace(port: int) -> None:
    ranks = [Rank(port, 0), Rank(port, 1)]
    for rank in ranks:
        rank.life.before_collective()
    leaving = [threading.Thread(target=rank.life.close) for rank in ranks]
    for thread in leaving:
        thread.start()
    for thread in leaving:
        thread.join(10)
    assert [rank.why for rank in ranks] == ["", ""]
    for rank in ranks:
        rank.line.close()


@pytest.mark.parametrize("already_finalizes", [True, False])
def test_a_rank_that_is_lost_after_its_work_ends_what_waits_for_it_in_finalize(
    already_finalizes: bool, port: int
) -> None:
    stays, lost = Rank(port, 0), Rank(port, 1)
    reached = threading.Event()

    def finalize() -> None:
        reached.set()
        assert stays.ended.wait(10)

    threading.Thread(target=lost.life.close, args=(stays.ended.wait,), daemon=True).start()
    closing = threading.Thread(target=stays.life.close, args=(finalize,), daemon=True)
    if already_finalizes:
        closing.start()
        assert reached.wait(10)
    while not stays.life._last:  # it has heard that the other one has done its work
        time.sleep(0.01)
    lost.line.shutdown(socket.SHUT_RDWR)
    if not already_finalizes:
        assert not stays.ended.wait(0.3), "it still has its own work to do"
        closing.start()
    assert stays.ended.wait(10)
    assert stays.why == "worker 1 has exited or disconnected"
    closing.join(10)
    with contextlib.suppress(OSError):  # a process that ends disconnects
        stays.line.shutdown(socket.SHUT_RDWR)


def test_a_collective_that_a_rank_will_never_join_is_reported(port: int) -> None:
    stays, leaves = Rank(port, 0), Rank(port, 1)
    stays.life.before_collective()
    leaves.life.before_collective()
    leaving = threading.Thread(target=leaves.life.close)
    leaving.start()
    while not stays.ended.wait(0.05):
        stays.life.before_collective()
    assert stays.why.startswith("worker 1 has ended after 1 collectives and this worker is in ")
    for rank in (stays, leaves):
        rank.line.shutdown(socket.SHUT_RDWR)
    leaving.join(10)


def test_a_switchboard_ends_with_the_process_that_started_it() -> None:
    script = "from tfaccel.cluster import coordinator; print(coordinator.start(2), flush=True)"
    done = subprocess.run(
        [sys.executable, "-c", script + "; import os; os.kill(os.getpid(), 9)"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == -signal.SIGKILL
    port = int(done.stdout)
    for _ in range(100):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except ConnectionRefusedError:
            return
        threading.Event().wait(0.05)
    pytest.fail(f"somebody still listens on port {port}, {os.getpid()=}")
