"""Processes that are killed, and a job that is started again: the same bits at the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.checkpoint.same import assert_same
from tests.support import run_child, run_forked
from tfaccel.checkpoint.restart_counter import RestartCounter
from tfaccel.exit_codes import PREEMPTED

RUN = ["-m", "tests.checkpoint.run"]


def job(out: Path, *more: str, data: str = "arrays", restarts: int = 0) -> str:
    """Two workers, all of which are started again when one is lost; and what they printed."""
    out.mkdir()
    launch = [
        "-m",
        "tfaccel.cli",
        "launch",
        "--nproc=2",
        "--show=all",
        f"--max-restarts={restarts}",
    ]
    options = ["--strategy", "multi_worker_mirrored", "--seed", "1", "--data", data]
    return run_child([*launch, *RUN[:1], "--", RUN[1], str(out), *options, *more])


@pytest.mark.parametrize(
    ("rank", "phase", "data"),
    [
        # In every run: tests/survival.
        pytest.param(1, "part", "tf.data", marks=pytest.mark.exhaustive),
        pytest.param(0, "part", "arrays", marks=pytest.mark.exhaustive),
        pytest.param(1, "step", "tf.data", marks=pytest.mark.exhaustive),
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


def test_no_step_is_lost_when_a_worker_gets_sigterm(tmp_path: Path) -> None:
    out = tmp_path / "told"
    said = job(out, "--kill", "10", "--signal", "SIGTERM", "--rank", "1", "--once")
    assert said.count("tfaccel: resuming from") == 1, "the chief says it alone"
    for rank in range(2):
        lines = (out / f"seen-{rank}.jsonl").read_text().splitlines()
        assert [json.loads(line)[0] for line in lines] == list(range(1, 19))
    assert len(json.loads((out / "history-0.json").read_text())["loss"]) == 3


@pytest.mark.exhaustive
@pytest.mark.parametrize("communication", ["ring", "mpi"])
@pytest.mark.parametrize("phase", ["validation", "trace", "compile"])
def test_a_worker_is_told_to_stop_where_no_step_ends(
    phase: str, communication: str, tmp_path: Path
) -> None:
    options = ["--options", json.dumps({"communication": communication})]
    job(tmp_path / "whole", *options)
    told = ["--kill", "6", "--kill-in", phase, "--signal", "SIGTERM", "--rank", "1", "--once"]
    job(tmp_path / "told", *options, *told)
    assert (tmp_path / "told" / "killed").exists()
    assert_same(tmp_path / "whole", tmp_path / "told", ranks=2)


def test_a_notice_is_heard_in_a_first_step_that_does_not_end(tmp_path: Path) -> None:
    told = ["--kill", "1", "--kill-in", "compile", "--signal", "SIGTERM"]
    said = run_forked([RUN[1], str(tmp_path), *told], codes=(PREEMPTED,))
    assert "SIGTERM: stopped before the first step; exit code 33" in said
    assert not (tmp_path / "seen-0.jsonl").exists()
    assert RestartCounter(str(tmp_path / "checkpoints")).starts == 0, "it does not count"


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
