from __future__ import annotations

from dataclasses import replace

import pytest

from tfaccel.launch.failure import (
    TAIL_LINES,
    TRACEBACK_LINES,
    Exit,
    error_tail,
    first_failure,
    missing_workers,
    summary,
)

TRACEBACK = (
    "Traceback (most recent call last):",
    '  File "train.py", line 3, in <module>',
    "    raise ValueError",
)
CAUSE = (*TRACEBACK, "ValueError: no such file")
CAUSE_THEN_NOISE = (*CAUSE, "I0000 Coordination service agent was shut down")
PEER_LOST = (*TRACEBACK, "tensorflow.python.framework.errors_impl.UnavailableError: Graph error")
GONE = (
    "tfaccel: worker 1 of 2 (n2:2222) has exited or disconnected; it was in a step (batch 7 of "
    "epoch 2); aborting this worker.",
)
FATAL = ("F0000 client.h:88] Terminating: Coordination service reported UNAVAILABLE",)


def ended(rank: int, status: int, at: float, stderr: tuple[str, ...] = (), **fields: bool) -> Exit:
    return Exit(rank, 100 + rank, status, at, stderr, **fields)


@pytest.mark.parametrize(
    ("exits", "rank"),
    [
        ([], None),
        ([ended(0, 0, 0.0), ended(1, 0, 1.0)], None),
        ([ended(0, 0, 0.0), ended(1, 1, 1.0)], 1),
        ([ended(1, -9, 0.0), ended(0, 1, 0.1)], 1),
        # The one that lost its peer is seen first, the cause within the second.
        ([ended(0, 1, 0.0, PEER_LOST), ended(1, 1, 0.9, CAUSE)], 1),
        ([ended(0, 1, 0.0, PEER_LOST), ended(1, 1, 0.9, CAUSE_THEN_NOISE)], 1),
        ([ended(0, -6, 0.0, FATAL), ended(2, 1, 0.1, PEER_LOST), ended(1, -11, 0.5)], 1),
        ([ended(0, 1, 0.0, GONE), ended(1, 1, 0.9, CAUSE)], 1),
        # After the second it is another story.
        ([ended(0, 1, 0.0, PEER_LOST), ended(1, 1, 1.1, CAUSE)], 0),
        ([ended(0, 1, 0.0, PEER_LOST), ended(1, 1, 0.5, PEER_LOST)], 0),
        # We stopped it: its end says nothing.
        ([ended(0, 1, 0.0, PEER_LOST), ended(1, -15, 0.5, stopped=True)], 0),
        ([ended(1, -15, 0.0, stopped=True)], None),
    ],
)
def test_first_failure(exits: list[Exit], rank: int | None) -> None:
    found = first_failure(exits)
    assert (found.rank if found else None) == rank


@pytest.mark.parametrize(
    ("status", "code", "how"),
    [
        (3, 3, "exit code 3"),
        (-15, 143, "killed by SIGTERM"),
        (-11, 139, "killed by SIGSEGV"),
        (-99, 227, "killed by signal 99"),
    ],
)
def test_status_as_a_shell_and_as_people_say_it(status: int, code: int, how: str) -> None:
    assert (ended(0, status, 0.0).code, ended(0, status, 0.0).description) == (code, how)


def test_last_words_start_at_the_last_traceback() -> None:
    assert error_tail(("noise", *PEER_LOST, "more", *CAUSE_THEN_NOISE)) == CAUSE_THEN_NOISE


def test_last_words_are_few() -> None:
    many = tuple(map(str, range(1000)))
    assert error_tail(many) == many[-TAIL_LINES:]
    assert error_tail((*CAUSE, *many))[: len(CAUSE)] == CAUSE
    assert len(error_tail((*CAUSE, *many))) == TRACEBACK_LINES


def test_the_summary_names_the_failed_worker_its_end_its_output_and_the_others() -> None:
    cause = ended(1, -9, 0.0, CAUSE)
    exits = [cause, ended(2, 0, 0.1, stopped=True), ended(0, 1, 0.2)]
    assert summary(cause, exits).splitlines() == [
        "rank 1 failed first: killed by SIGKILL (pid 101)",
        "the others: rank 0 exit code 1, rank 2 was stopped",
        "the end of its stderr:",
        *(f"  {line}" for line in CAUSE),
    ]
    assert "its stderr is empty" in summary(ended(0, 1, 0.0), [])


def test_the_summary_tells_what_nobody_has_seen() -> None:
    hidden = replace(ended(1, 2, 0.0, CAUSE), stdout=(*map(str, range(TAIL_LINES)), "last"))
    lines = summary(hidden, [hidden], "logs/rank-1.log").splitlines()
    assert lines[1:4] == ["full log: logs/rank-1.log", "the end of its stdout:", "  1"]
    assert lines[2 + TAIL_LINES : 4 + TAIL_LINES] == ["  last", "the end of its stderr:"]


LATE = (*TRACEBACK, "ClusterError: 1 of 3 workers did not connect within 9 s: worker 2 (a:1)")
NO_CHIEF = (*TRACEBACK, "ClusterError: worker 1 (b:1) waited 9 s and did not reach worker 0 at a:1")


@pytest.mark.parametrize(
    ("exits", "arrived", "absent"),
    [
        # One failed before it came; who was stopped for it might have come.
        ([ended(2, 1, 0.0, CAUSE), ended(0, -15, 0.1, stopped=True)], {0}, [2]),
        ([ended(2, 1, 0.0, CAUSE), ended(0, -15, 0.1, stopped=True)], set(), [2]),
        ([ended(2, 1, 0.0, CAUSE), ended(1, -9, 0.1), ended(0, 0, 0.2)], {0}, [1, 2]),
        # The others have waited for it.
        ([ended(0, 1, 0.0, LATE), ended(2, -15, 0.1, stopped=True)], {0, 1}, [2]),
        ([ended(1, 1, 0.0, NO_CHIEF), ended(0, -15, 0.1, stopped=True)], {1}, [0]),
        # It failed of something else, before or after all had come.
        ([ended(0, 1, 0.0, CAUSE), ended(1, -15, 0.1, stopped=True)], {0, 1}, []),
        ([ended(0, 1, 0.0, CAUSE), ended(1, -15, 0.1, stopped=True)], {0}, []),
        ([ended(0, 0, 0.0), ended(1, 0, 0.0)], {0, 1}, []),
    ],
)
def test_who_did_not_come(exits: list[Exit], arrived: set[int], absent: list[int]) -> None:
    assert missing_workers(exits, arrived) == absent
