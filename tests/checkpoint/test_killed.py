"""Processes that are killed, and a job that is started again: the same bits at the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.checkpoint.test_resume import assert_same
from tests.support import run_child

RUN = ["-m", "tests.checkpoint.run"]


def job(out: Path, *more: str, data: str = "arrays", restarts: int = 0) -> None:
    """Two workers, all of which are started again when one is lost."""
    out.mkdir()
    launch = ["-m", "tfaccel.cli", "launch", "--nproc", "2", "--max-restarts", str(restarts)]
    options = ["--strategy", "multi_worker_mirrored", "--seed", "1", "--data", data]
    run_child([*launch, *RUN[:1], "--", RUN[1], str(out), *options, *more])


@pytest.mark.parametrize(
    ("rank", "phase", "data"),
    [
        (1, "step", "tf.data"),
        pytest.param(0, "step", "arrays", marks=pytest.mark.exhaustive),
        pytest.param(0, "save", "PyDataset", marks=pytest.mark.exhaustive),
        pytest.param(1, "validation", "arrays", marks=pytest.mark.exhaustive),
    ],
)
def test_a_worker_is_killed(rank: int, phase: str, data: str, tmp_path: Path) -> None:
    job(tmp_path / "whole", data=data)
    kill = ["--kill", "10", "--kill-in", phase, "--rank", str(rank), "--once"]
    job(tmp_path / "lost", *kill, data=data, restarts=1)
    assert (tmp_path / "lost" / "killed").exists()
    assert_same(tmp_path / "whole", tmp_path / "lost", ranks=2)


def test_a_worker_is_told_to_stop_and_no_step_is_lost(tmp_path: Path) -> None:
    out = tmp_path / "told"
    job(out, "--kill", "10", "--signal", "SIGTERM", "--rank", "1", "--once")
    for rank in range(2):
        lines = (out / f"seen-{rank}.jsonl").read_text().splitlines()
        assert [json.loads(line)[0] for line in lines] == list(range(1, 19))
    assert len(json.loads((out / "history-0.json").read_text())["loss"]) == 3


@pytest.mark.exhaustive
@pytest.mark.parametrize("batches", range(1, 18, 2))
def test_a_process_is_killed_again_and_again(batches: int, tmp_path: Path) -> None:
    options = ["--seed", "1", "--data", "tf.data that draws"]
    whole, lost = tmp_path / "whole", tmp_path / "lost"
    whole.mkdir()
    lost.mkdir()
    run_child([*RUN, str(whole), *options])
    run_child([*RUN, str(lost), *options, "--kill", str(batches)], codes=(-9,))
    run_child([*RUN, str(lost), *options, "--kill", "2"], codes=(-9, 0))
    run_child([*RUN, str(lost), *options])
    assert_same(whole, lost)
