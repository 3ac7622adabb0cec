"""`--nproc 2:3` of a fit: it begins with two workers, loses one, and goes on with three."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT, environment

pytestmark = pytest.mark.exhaustive


def run(folder: Path, *launcher: str) -> tuple[list[float], str]:
    """The losses of both epochs, and what was printed."""
    folder.mkdir()
    command = [sys.executable, "-m", *launcher, "tests.launch.elastic_fit", str(folder)]
    ran = subprocess.run(
        command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=400
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads((folder / "losses.json").read_text()), ran.stdout + ran.stderr


def test_a_worker_that_is_lost_and_comes_back_changes_no_loss(tmp_path: Path) -> None:
    expected, _ = run(tmp_path / "one device")
    launch = ("tfaccel.cli", "launch", "--nproc", "2:3", "--max-restarts", "1", "--show=all", "-m")
    found, printed = run(tmp_path / "elastic", *launch)
    assert "starting 2 workers: rank 2 did not connect to the others" in printed
    assert "tfaccel: saved on 2 workers, resuming on 3 workers." in printed
    steps = {size: re.findall(rf"step (\d+) of {size} workers", printed) for size in (2, 3)}
    # From the last complete checkpoint on, and each global batch once.
    assert steps[2].count("7") == 2
    first = int(min(steps[3], key=int))
    assert first in (3, 5, 7)
    assert sorted(map(int, steps[3])) == sorted([*range(first, 21)] * 3)
    assert found == pytest.approx(expected, rel=1e-6)
