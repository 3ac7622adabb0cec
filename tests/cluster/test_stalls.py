"""Who holds up a job: the rules, processes that follow them, and jobs that train."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import environment, run_child
from tfaccel.cluster import coordinator
from tfaccel.cluster.failure_detector import FailureDetector
from tfaccel.cluster.stalls import (
    BUSY,
    COLLECTIVE,
    COMPILES,
    DATA,
    DEBUGGER,
    SILENT_S,
    STEP,
    TRACES,
    Finding,
    StallWatch,
    WorkerStatus,
    named,
)

FLOOR_S = 60.0
DEADLOCK = "deadlock: workers are waiting for each other (possible collective mismatch)"
LONGEST_S = 0.5

# --- the rules ------------------------------------------------------------------------------------


def says(state: str, batches: int = 7, longest_s: float = LONGEST_S, **fields: Any) -> WorkerStatus:
    return WorkerStatus(state, f"in {state}", batches, longest_s=longest_s, **fields)


def found(*reports: WorkerStatus, after_s: float = FLOOR_S + 1, **options: Any) -> list[Finding]:
    """What is found when these workers have said the same for some time."""
    watch = StallWatch(len(reports), options.get("floor_s", FLOOR_S))
    findings: list[Finding] = []
    for second in range(int(after_s) + 1):
        for rank, report in enumerate(reports):
            if rank not in options.get("silent", ()) or second == 0:
                since = report.since_s + second
                unused = report.unused_s and report.unused_s + second
                fields = {**vars(report), "since_s": since, "unused_s": unused}
                watch.record_status(rank, WorkerStatus(**fields), float(second))
        findings += watch.find(float(second))
    return findings


def test_who_waits_for_data_while_others_are_in_the_step_is_at_fault() -> None:
    (only,) = found(says(STEP), says(DATA))
    assert (only.ranks, only.ends) == ((1,), True)
    assert only.why.startswith("{1} has been in data for 61 s, longer than stall_timeout=60 and")
    assert only.why.endswith("; {0} waits, in step")


def test_a_job_may_stand_still_for_three_times_its_longest_step() -> None:
    slow = says(STEP, longest_s=40.0), says(DATA, longest_s=30.0)
    assert not found(*slow, after_s=119)
    assert found(*slow, after_s=121)[0].ranks == (1,)


def test_the_floor_is_a_setting_and_zero_is_for_ever() -> None:
    assert found(says(STEP), says(DATA), after_s=6, floor_s=5.0)
    assert not found(says(STEP), says(DATA), after_s=10_000, floor_s=0.0)


def test_all_that_wait_for_each_other_are_told_with_who_is_behind() -> None:
    (only,) = found(says(STEP, 8), says(COLLECTIVE, 7), says(STEP, 8))
    assert (only.ranks, only.ends) == ((1,), True)
    assert only.why.endswith(f"; {DEADLOCK}")
    assert all(f"{{{rank}}} has been in" in only.why for rank in range(3))


def test_a_worker_that_is_stopped_in_a_step_is_told_of_at_once_and_ends_the_job_later() -> None:
    told, ends = found(says(STEP), says(STEP), silent=[1])
    assert (told.ranks, told.ends, ends.ranks, ends.ends) == ((1,), False, (1,), True)
    silent = f"{{1}} has sent no heartbeat for {SILENT_S + 1:.0f} s"
    assert told.why.startswith(f"{silent}; it was in step")
    assert "{1} is not responding; last seen in step, no progress for" in ends.why


def test_a_silent_worker_that_others_are_ahead_of_does_not_compile_any_more() -> None:
    *_, ends = found(says(STEP, 7), says(COMPILES, 1), silent=[1])
    assert (ends.ranks, ends.ends) == ((1,), True)


UNUSED = {"unused_s": 0.1, "longest_s": 0.0}  # since the first report


@pytest.mark.parametrize(
    ("one", "other"), [(COMPILES, COMPILES), (COMPILES, COLLECTIVE), (TRACES, TRACES)]
)
def test_workers_that_compile_without_a_processor_wait_for_each_other(one: str, other: str) -> None:
    reports = says(one, **UNUSED), says(other, **UNUSED)
    assert not found(*reports, after_s=3 * FLOOR_S)
    (only,) = found(*reports, after_s=3 * FLOOR_S + 1)
    assert (only.ranks, only.ends) == ((0, 1), True)
    assert only.why.endswith(f"no processor was used meanwhile; {DEADLOCK}")


def test_who_stands_still_in_a_trace_is_at_fault() -> None:
    (only,) = found(says(COMPILES, **UNUSED), says(TRACES, **UNUSED), after_s=3 * FLOOR_S + 1)
    assert (only.ranks, only.ends) == ((1,), True)


@pytest.mark.parametrize(
    ("one", "stopped"),
    [
        (says(COMPILES, **UNUSED), says(COMPILES, longest_s=0.0)),
        (says(STEP), says(BUSY)),
    ],
)
def test_a_worker_that_is_stopped_in_what_may_take_long_ends_the_job_later(
    one: WorkerStatus, stopped: WorkerStatus
) -> None:
    reports = one, stopped
    told = found(*reports, after_s=3 * FLOOR_S - 1, silent=[1])
    assert {(one.ranks, one.ends) for one in told} == {((1,), False)}
    *_, ends = found(*reports, after_s=3 * FLOOR_S + 1, silent=[1])
    assert (ends.ranks, ends.ends) == ((1,), True)


@pytest.mark.parametrize("state", [BUSY, COMPILES, TRACES])
def test_what_has_taken_long_may_also_hold_pythons_lock(state: str) -> None:
    told = found(says(STEP), says(state, since_s=5000.0), silent=[1])
    assert not any(one.ends for one in told)


@pytest.mark.parametrize(
    "reports",
    [
        (says(COMPILES), says(STEP)),
        (says(COMPILES), says(COMPILES)),
        (says(COMPILES), says(COMPILES, **UNUSED)),
        (says(TRACES), says(COMPILES, **UNUSED)),
        (says(TRACES, **UNUSED), says(COMPILES)),
        (says(DEBUGGER), says(STEP)),
        (says(STEP, longest_s=0.0), says(STEP, longest_s=0.0)),
        (says(BUSY), says(BUSY)),
    ],
)
def test_what_may_take_long_is_no_hang(reports: tuple[WorkerStatus, ...]) -> None:
    assert not found(*reports, after_s=10_000)


@pytest.mark.parametrize("slow", [says(BUSY), says(DATA, longest_s=0.0)])
def test_what_may_take_long_is_told_when_others_wait_for_it(slow: WorkerStatus) -> None:
    told = found(slow, says(STEP), after_s=900)
    assert [(one.ranks, one.ends) for one in told] == [((0,), False)] * 4  # 61, 123, 247, 495 s
    assert not any(one.stacks for one in told)


def test_data_that_no_worker_gets_are_slow_and_nobodys_fault() -> None:
    told = found(says(DATA), says(DATA), after_s=200)
    assert [(one.ranks, one.ends) for one in told] == [((0, 1), False)] * 2
    assert [one.stacks for one in told] == [True, False]


def test_a_job_that_goes_on_anywhere_does_not_stall() -> None:
    watch = StallWatch(2, FLOOR_S)
    for second in range(1000):
        watch.record_status(0, says(DATA, since_s=float(second)), float(second))
        watch.record_status(1, says(STEP, batches=second), float(second))
        assert not list(watch.find(float(second)))


def test_time_in_which_the_machine_slept_does_not_count() -> None:
    watch = StallWatch(2, FLOOR_S)
    watch.record_status(0, says(DATA), 0.0)
    watch.record_status(1, says(STEP), 0.0)
    watch.reset_clock(1000.0)
    watch.record_status(0, says(DATA, since_s=1001.0), 1001.0)
    watch.record_status(1, says(STEP, since_s=1001.0), 1001.0)
    assert not list(watch.find(1001.0))


def test_a_worker_that_has_ended_leaves_the_others_waiting_for_it() -> None:
    watch = StallWatch(2, FLOOR_S)
    watch.record_status(0, says(STEP, since_s=61.0), 0.0)
    watch.record_status(1, says(STEP), 0.0)
    watch.end(1)
    (only,) = watch.find(0.0)
    assert only.ends
    assert "{1} has ended" in only.why


def test_workers_that_do_not_report_are_not_judged() -> None:
    watch = StallWatch(2, FLOOR_S)
    watch.record_status(0, says(DATA, since_s=1000.0), 0.0)
    assert not list(watch.find(0.0))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"state": "step", "batches": []}'])
def test_what_is_no_report_is_none(text: str) -> None:
    assert WorkerStatus.parse(text) is None


def test_ranks_get_their_names() -> None:
    assert named("{1} and {0}", ["worker 0", "worker 1"]) == "worker 1 and worker 0"


def test_a_worker_has_reported_before_its_detector_is_made() -> None:
    """It may be stopped at any time after that, and is judged."""
    coordinator_end, worker_end = socket.socketpair()
    with coordinator_end, worker_end:
        reporters: list[threading.Thread] = []

        def report() -> dict[str, Any]:
            reporters.append(threading.current_thread())
            return {"state": STEP}

        detector = FailureDetector(worker_end, ["worker 0"], report=report)
        assert reporters[0] is threading.current_thread()
        coordinator_end.settimeout(10.0)
        assert coordinator_end.recv(100).startswith(b'at {"state": "step"}\n')
        detector.abort()


# --- processes ------------------------------------------------------------------------------------

RANK = """
import sys, threading, time
from tfaccel.cluster import coordinator
from tfaccel.cluster.failure_detector import FailureDetector
from tfaccel.cluster.failure_detector import FailureDetector

rank, port, state = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

def report():
    return {"state": state, "place": f"in {state} of batch 7", "batches": 7, "longest_s": 0.1,
            "since_s": time.monotonic() - began}

def stands_still():
    threading.Event().wait()

began = time.monotonic()
line = coordinator.connect("127.0.0.1", port, rank, "liveness", "abc")
FailureDetector(line, ["worker 0", "worker 1"], rank=rank, report=report)
print("ready", flush=True)
stands_still()
"""


class Pair:
    """Two processes that tell a coordinator what they do."""

    def __init__(self, states: tuple[str, str], stall_timeout_s: float) -> None:
        port = coordinator.start(2, "abc", "127.0.0.1", stall_timeout_s)
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", RANK, str(rank), str(port), state],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment(),
            )
            for rank, state in enumerate(states)
        ]
        for process in self.processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"

    def end(self, rank: int) -> tuple[int, str]:
        """The exit code and the stderr of a process that ends by itself."""
        said = self.processes[rank].communicate(timeout=60)[1]
        return self.processes[rank].returncode, said


@pytest.fixture
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    made = Pair(*request.param)
    yield made
    for process in made.processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("pair", [(("step", "data"), 1.0)], indirect=True)
def test_both_tell_their_stacks_and_who_it_was(pair: Pair) -> None:
    for rank in range(2):
        code, said = pair.end(rank)
        assert code == 1
        assert "in stands_still" in said
        assert re.search(r"^tfaccel: worker 1 has been in data of batch 7 for \d s", said, re.M)
        assert "worker 0 waits, in step of batch 7" in said.splitlines()[-1]


@pytest.mark.parametrize("pair", [(("step", "collective"), 1.0)], indirect=True)
def test_workers_in_different_collectives_are_ended(pair: Pair) -> None:
    for rank in range(2):
        code, said = pair.end(rank)
        assert code == 1
        where = r"worker 0 has been in step of batch 7 for \d s, worker 1 has been in collective of"
        assert re.search(where, said.splitlines()[-1])
        assert DEADLOCK in said


@pytest.mark.parametrize("pair", [(("step", "step"), 0.0)], indirect=True)
def test_who_is_killed_is_told_with_what_it_did(pair: Pair) -> None:
    threading.Event().wait(0.3)  # until its first report has come
    pair.processes[1].kill()
    code, said = pair.end(0)
    assert code == 1
    assert (
        "tfaccel: worker 1 has exited or disconnected; it was in step of batch 7; aborting" in said
    )


@pytest.mark.parametrize("pair", [(("step", "step"), 7.0)], indirect=True)
def test_who_is_stopped_is_told_of_and_ends_the_job(pair: Pair) -> None:
    pair.processes[0].send_signal(signal.SIGSTOP)
    try:
        code, said = pair.end(1)
    finally:
        pair.processes[0].send_signal(signal.SIGCONT)
    assert code == 1
    lines = [line for line in said.splitlines() if line.startswith("tfaccel: worker")]
    silent = r"tfaccel: worker 0 has sent no heartbeat for \d s; it was in step of"
    assert re.match(silent, lines[0])
    assert re.match(r"tfaccel: worker 0 is not responding; last seen in step of batch 7", lines[1])


# --- jobs that train ------------------------------------------------------------------------------


def job(fault: str, transport: str, *options: str, stall_timeout_s: float = 3.0) -> str:
    """What two workers say of which one stops going on."""
    env = {"TFACCEL_STALL_TIMEOUT": str(stall_timeout_s)}
    options = (*options, "--mesh") if transport == "mesh" else options
    if transport != "mesh":
        env["TFACCEL_COMMUNICATION"] = transport
    command = ["-m", "tests.cluster.faulty_run", fault, *options]
    codes = (0,) if fault.startswith("slow") else (1, 128 + signal.SIGKILL)
    return run_child(command, workers=2, env=env, codes=codes)


def exhaustive(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.exhaustive)


@pytest.mark.parametrize("transport", ["ring", exhaustive("mpi"), exhaustive("mesh")])
def test_a_stuck_generator_is_named(transport: str) -> None:
    output = job("generator", transport)
    where = r"waiting for data \(batch 6 of epoch 2\) for \d+ s"
    assert re.search(rf"tfaccel: worker 1 of 2 \(127\.0\.0\.1:\d+\) has been {where}", output)
    assert re.search(r"^\[0\] .*in a step \(batch 6 of epoch 2\)", output, re.M)
    assert re.search(r"^\[1\] .*faulty_run.py.*in batches", output, re.M)
    assert re.search(r"^\[0\] .*Python stack of worker 0, thread MainThread", output, re.M)


@pytest.mark.exhaustive
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("transport", ["ring", "mpi", "mesh"])
def test_a_stopped_worker_is_named(transport: str, rank: int) -> None:
    said = job("stop", transport, "--rank", str(rank), stall_timeout_s=8.0)
    assert re.search(
        rf"tfaccel: worker {rank} of 2 .* (has sent no heartbeat|is not responding)", said
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize("transport", ["ring", "mpi", "mesh"])
def test_a_killed_worker_is_named_with_its_batch(transport: str) -> None:
    said = job("kill", transport)
    where = r"(in a step|in a collective|in Callback|waiting for data).* \(batch \d of epoch 1\)"
    assert re.search(
        rf"tfaccel: worker 1 of 2 .* has exited or disconnected; it was {where}", said
    ), said


FIRST_STEP = {
    "trace": "has been tracing",
    "stopped trace": r"is not responding; last seen .*\(batch 1 of epoch 1\)",
    "first step": "has been compiling .*; deadlock: workers are waiting for each other",
}


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("fault", "transport"),
    [
        *((fault, transport) for fault in FIRST_STEP for transport in ("ring", "mpi")),
        *(("trace", "mesh"), ("stopped trace", "mesh")),  # which has no operation that hangs
    ],
)
def test_a_first_step_that_does_not_end_is_named(fault: str, transport: str) -> None:
    said = job(fault, transport)
    assert re.search(f"worker 1 of 2 .* {FIRST_STEP[fault]}", said)
    if (fault, transport) == ("first step", "mpi"):
        started = r"has started \d+ collectives, the last: sum of \d+ bytes"
        assert re.search(rf"^\[0\] tfaccel: worker 0 {started}", said, re.M)
    assert re.search(r"^\[0\] .*Python stack of worker 0, thread MainThread", said, re.M)


@pytest.mark.exhaustive
@pytest.mark.parametrize("transport", ["ring", "mpi", "mesh"])
@pytest.mark.parametrize("slow", ["callback", "validation", "compile"])
def test_what_is_slow_is_no_hang(slow: str, transport: str) -> None:
    said = job(f"slow {slow}", transport)
    assert said.count("trained to the end") == 2
    told = "has been in Callback.on_epoch_end (batch 8 of epoch 1)"
    assert (told in said) == (slow == "callback")
