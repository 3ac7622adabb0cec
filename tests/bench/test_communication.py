"""`tfaccel bench communication`: its arithmetic, and a run between two workers."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.support import environment
from tfaccel.bench import communication, step_time
from tfaccel.bench.measurements import Message, Transport
from tfaccel.errors import ClusterError, StrategyError

TWO = Transport("ring", 2, (Message(1000, 1.0), Message(3000, 2.0), Message(5000, 6.0)))


@pytest.mark.parametrize(
    ("size", "seconds"), [(1000, 1.0), (2000, 1.5), (4000, 4.0), (6000, 8.0), (0, 1.0)]
)
def test_times_between_and_beyond_those_measured(size: int, seconds: float) -> None:
    assert TWO.seconds(size) == pytest.approx(seconds)


def test_each_of_more_workers_sends_more() -> None:
    assert TWO.bus_bandwidth(TWO.messages[0]) == 1000
    four = Transport("ring", 4, TWO.messages)
    assert four.bus_bandwidth(four.messages[0]) == 1500


def test_communication_as_a_fraction_of_a_step() -> None:
    assert TWO.wait_fraction(3000, step_s=6.0) == pytest.approx(0.25)


@pytest.mark.parametrize("text", ["", "1KB", "1KB,1KB", "x,1KB", "1TB,1KB", "2,1KB"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="cannot be read as sizes"):
        communication._sizes(text)


def test_alone_there_is_nothing_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TF_CONFIG", "PMI_RANK", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ClusterError, match="one worker has no other to communicate with"):
        communication.main([])


@pytest.mark.slow
def test_two_workers_measure_both_transports() -> None:
    bench = ["tfaccel.cli", "bench", "communication", "--json", "--sizes", "1KB,1MB"]
    done = subprocess.run(
        [sys.executable, "-m", "tfaccel.cli", "launch", "--nproc", "2", "-m", "--", *bench],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = {one["name"]: one for one in json.loads(done.stdout)}
    assert set(found) == {"mpi", "ring"}
    for one in found.values():
        assert not one["error"]
        assert [m["size"] for m in one["messages"]] == [1024, 1 << 20]
        assert all(0 < m["seconds"] < 60 for m in one["messages"])


def saved(folder: Path, *shape: int | None) -> str:
    model = keras.Sequential([keras.Input(shape), keras.layers.Dense(2)])
    model.save(folder / "model.keras")
    return str(folder / "model.keras")


def test_a_step_of_a_model_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path, 3)
    model = step_time.load(path)
    assert step_time.gradient_bytes(model) == 4 * (3 * 2 + 2)
    before = model.get_weights()
    assert 0 < step_time.seconds(model, rows=4) < 10
    assert not np.array_equal(before[1], model.get_weights()[1]), "a step updates"
    communication._print([TWO], communication._parser().parse_args(["--model", path]))
    said = capsys.readouterr().out
    assert "a step of 32 rows takes" in said
    assert "% of a step without overlap" in said


def test_a_step_of_unknown_shapes_is_not_measured(tmp_path: Path) -> None:
    with pytest.raises(StrategyError, match=r"inputs of shapes \[\(None, 3\)\]; expected known"):
        step_time.seconds(step_time.load(saved(tmp_path, None, 3)), rows=4)


def test_a_model_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(StrategyError, match=r"cannot be loaded .*; give a \.keras file"):
        step_time.load(str(tmp_path / "none.keras"))
