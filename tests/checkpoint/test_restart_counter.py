"""How often a run was started without a new step."""

from __future__ import annotations

from pathlib import Path

import pytest

from tfaccel.checkpoint.restart_counter import LIMIT, RestartCounter


@pytest.fixture(params=["local", "remote"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/run" if request.param == "remote" else str(tmp_path / "run")


def test_a_start_is_counted_until_a_step_is_new(where: str) -> None:
    for number in range(LIMIT):
        assert RestartCounter(where).starts == number
        assert RestartCounter(where).begin()
    assert not RestartCounter(where).begin()
    RestartCounter(where).saved(7)
    assert (RestartCounter(where).starts, RestartCounter(where).furthest) == (0, 7)


def test_steps_that_an_earlier_start_has_made_are_not_new(tmp_path: Path) -> None:
    first = RestartCounter(str(tmp_path))
    assert first.begin()
    for batches in (1, 2, 3):
        first.step(batches)
    second = RestartCounter(str(tmp_path))
    assert second.begin()
    for batches, starts in ((2, 1), (3, 1), (4, 0)):
        second.step(batches)
        assert RestartCounter(str(tmp_path)).starts == starts
    assert RestartCounter(str(tmp_path)).furthest == 4


def test_a_start_that_was_told_to_stop_is_taken_back(where: str) -> None:
    assert RestartCounter(where).begin()
    RestartCounter(where).take_back()
    assert RestartCounter(where).starts == 0


def test_a_file_that_is_cut_counts_nothing(tmp_path: Path) -> None:
    count = RestartCounter(str(tmp_path))
    assert count.begin()
    Path(count.path).write_text("after batch 0000")
    assert RestartCounter(str(tmp_path)).starts == 0
