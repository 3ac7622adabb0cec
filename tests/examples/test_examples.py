"""The examples, as a user runs them: one flag changes, the stated accuracy stays."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PYTHON = [sys.executable]
LAUNCH = [sys.executable, "-m", "tfaccel.cli", "launch", "--nproc", "2"]


def run(command: list[str], out: Path) -> str:
    done = subprocess.run(
        [*command, f"--out={out}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


STRATEGIES = {
    "auto": (PYTHON, ["--strategy=auto"]),
    "mirrored": (PYTHON, ["--strategy=mirrored", "--device_type=cpu", "--devices=2"]),
    "multi_worker_mirrored": (LAUNCH, ["--strategy=multi_worker_mirrored"]),
    "model_parallel": (
        PYTHON,
        ["--strategy=model_parallel", "--mesh=batch=2,model=2", "--device_type=cpu"],
    ),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_digits_reach_their_accuracy(name: str, tmp_path: Path) -> None:
    start, flags = STRATEGIES[name]
    said = run([*start, "examples/digits.py", *flags, "--epochs=8"], tmp_path / "digits.keras")
    reached = [float(a) for a in re.findall(r"held-out accuracy: ([\d.]+)", said)]
    assert len(reached) == (2 if start is LAUNCH else 1)
    assert len(set(reached)) == 1, "the workers evaluate differently"
    assert reached[0] >= 0.95
    assert "reloads on one device" in said
    assert re.search(rf"strategy   {'one_device' if name == 'auto' else name} \(", said)


@pytest.mark.parametrize(
    "flags",
    [
        ["--strategy=multi_worker_mirrored"],
        pytest.param(["--strategy=model_parallel", "--mesh=model=2"], marks=pytest.mark.exhaustive),
    ],
    ids=["data", "model"],
)
def test_the_language_model_is_the_same_on_one_device_and_on_two_workers(
    flags: list[str], tmp_path: Path
) -> None:
    """Two epochs are enough to compare; the accuracy it states takes all of them."""
    script = ["examples/language_model.py", "--epochs=2"]
    alone = run([*PYTHON, *script, "--strategy=one_device"], tmp_path / "one.keras")
    both = run([*LAUNCH, *script, *flags], tmp_path / "two.keras")
    pattern = r"accuracy ([\d.]+), ([\d.]+) bits per character"
    (want,) = re.findall(pattern, alone)
    first, second = re.findall(pattern, both)
    assert first == second, "the workers evaluate differently"
    assert [float(v) for v in first] == pytest.approx([float(v) for v in want], rel=5e-3)
