from __future__ import annotations

import pytest

from tfaccel.launch.failure import (
    TAIL_LINES,
    TRACEBACK_LINES,
    Exit,
    error_tail,
    first_failure,
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
FATAL = ("F0000 client.h:88] Terminating: Coordination service reported UNAVAILABLE",)


def ended(rank: int, status: int, at: float, stderr: tuple[str, ...] = (), **more: bool) -> Exit:
    return Exit(rank, 100 + rank, status, at, stderr, **more)


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


def test_summary_tells_who_how_what_and_the_others() -> None:
    cause = ended(1, -9, 0.0, CAUSE)
    exits = [cause, ended(2, 0, 0.1, stopped=True), ended(0, 1, 0.2)]
    assert summary(cause, exits).splitlines() == [
        "rank 1 failed first: killed by SIGKILL (pid 101)",
        "the others: rank 0 exit code 1, rank 2 was stopped",
        "the end of its stderr:",
        *(f"  {line}" for line in CAUSE),
    ]
    assert "its stderr is empty" in summary(ended(0, 1, 0.0), [])
