"""`tfaccel bench communication`: its arithmetic, and a run between two workers."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import pytest

from tfaccel.bench import communication
from tfaccel.bench.measured import Message, Transport
from tfaccel.errors import ClusterError

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


def test_share_of_a_step() -> None:
    assert TWO.share(3000, step_s=6.0) == pytest.approx(0.25)


@pytest.mark.parametrize("text", ["", "1KB", "1KB,1KB", "x,1KB", "1TB,1KB", "2,1KB"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="are no sizes"):
        communication._sizes(text)


def test_alone_there_is_nothing_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TF_CONFIG", "PMI_RANK", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ClusterError, match="one worker has nobody to speak to"):
        communication.main([])


@pytest.mark.slow
def test_two_workers_measure_both_transports() -> None:
    bench = ["tfaccel.cli", "bench", "communication", "--json", "--sizes", "1KB,1MB"]
    done = subprocess.run(
        [sys.executable, "-m", "tfaccel.cli", "launch", "--nproc", "2", "-m", "--", *bench],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [x.removeprefix("[0] ") for x in done.stdout.splitlines() if x.startswith("[0] ")]
    found = {one["name"]: one for one in json.loads("\n".join(lines))}
    assert set(found) == {"mpi", "ring"}
    for one in found.values():
        assert not one["error"]
        assert [m["size"] for m in one["messages"]] == [1024, 1 << 20]
        assert all(0 < m["seconds"] < 60 for m in one["messages"])
