"""The examples, as a user runs them: one flag changes, the stated accuracy stays."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import environment

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PYTHON = [sys.executable]
LAUNCH = [sys.executable, "-m", "tfaccel.cli", "launch", "--nproc", "2", "--show", "all"]


def run(command: list[str], out: Path) -> str:
    return output([*command, f"--out={out}"])


def output(command: list[str]) -> str:
    """What an example prints; it must succeed."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        # The digits are of scikit-learn, which takes SciPy.
        env=environment(without=("jax", "jaxlib", "matplotlib", "IPython")),
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


@pytest.mark.parametrize(
    "name",
    # In every run the notebook trains on two replicas, tests/model_parallel on this mesh, and
    # tests/launch starts two workers.
    [n if n == "auto" else pytest.param(n, marks=pytest.mark.exhaustive) for n in STRATEGIES],
)
def test_digits_reach_their_accuracy(name: str, tmp_path: Path) -> None:
    start, flags = STRATEGIES[name]
    monitored = tmp_path / "monitored"
    command = [*start, "examples/digits.py", *flags, "--epochs=8", f"--monitor={monitored}"]
    said = run(command, tmp_path / "digits.keras")
    reached = [float(a) for a in re.findall(r"held-out accuracy: ([\d.]+)", said)]
    assert len(reached) == (2 if start is LAUNCH else 1)
    assert len(set(reached)) == 1, "the workers evaluate differently"
    assert reached[0] >= 0.95
    assert "reloads on one device" in said
    assert (monitored / "report.html").exists()
    assert re.search(rf"strategy   {'one_device' if name == 'auto' else name} \(", said)


@pytest.mark.exhaustive
def test_digits_go_on_from_their_checkpoints(tmp_path: Path) -> None:
    command = [*PYTHON, "examples/digits.py", "--strategy=one_device"]
    command.append(f"--checkpoints={tmp_path / 'run'}")
    run([*command, "--epochs=2"], tmp_path / "first.keras")
    said = run([*command, "--epochs=3"], tmp_path / "second.keras")
    assert "Epoch 3/3" in said
    assert "Epoch 2/3" not in said


@pytest.fixture(scope="module")
def language_model_alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[float, ...]:
    out = tmp_path_factory.mktemp("alone") / "one.keras"
    (found,) = language_model(PYTHON, ["--strategy=one_device"], out)
    return found


def language_model(start: list[str], flags: list[str], out: Path) -> list[tuple[float, ...]]:
    """What each process says; a part is enough to compare, the stated accuracy takes all."""
    part = ["--epochs=2", "--rows=320"]
    said = run([*start, "examples/language_model.py", *part, *flags], out)
    found = re.findall(r"accuracy ([\d.]+), ([\d.]+) bits per character", said)
    return [tuple(map(float, numbers)) for numbers in found]


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(["--strategy=multi_worker_mirrored"], marks=pytest.mark.exhaustive),
        pytest.param(["--strategy=model_parallel", "--mesh=model=2"], marks=pytest.mark.exhaustive),
    ],
    ids=["data", "model"],
)
def test_the_language_model_is_the_same_on_one_device_and_on_two_workers(
    flags: list[str], tmp_path: Path, language_model_alone: tuple[float, ...]
) -> None:
    first, second = language_model(LAUNCH, flags, tmp_path / "two.keras")
    assert first == second, "the workers evaluate differently"
    assert first == pytest.approx(language_model_alone, rel=5e-3)


@pytest.mark.exhaustive
def test_the_language_model_is_the_same_on_one_device_and_on_a_mesh(
    tmp_path: Path, language_model_alone: tuple[float, ...]
) -> None:
    flags = STRATEGIES["model_parallel"][1]
    (found,) = language_model(PYTHON, flags, tmp_path / "mesh.keras")
    assert found == pytest.approx(language_model_alone, rel=1e-3)
