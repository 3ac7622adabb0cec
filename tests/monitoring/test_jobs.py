"""The verdict of real jobs that were slowed down on purpose, and what a monitor leaves behind."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.monitoring.jobs import BATCH, ROWS, SLEEP_S, STEPS
from tests.support import run_child
from tfaccel.monitoring.records import read_path

pytestmark = pytest.mark.slow

Jobs = Mapping[str, list[dict[str, Any]]]


class Ran:
    """What jobs printed.

    Attributes:
        folder: of the monitors.
        output: of all workers.
        jobs: what each worker said of each job.
    """

    def __init__(self, folder: Path, strategy: str, workers: int, *jobs: str) -> None:
        self.folder = folder
        command = ["-m", "tests.monitoring.jobs", str(folder), strategy, *jobs]
        self.output = run_child(command, workers=workers)
        self.jobs: dict[str, list[dict[str, Any]]] = {}
        for text in re.findall(r"JOB (\{.*\})$", self.output, re.MULTILINE):
            found = json.loads(text)
            self.jobs.setdefault(found["job"], []).append(found)
        for each in self.jobs.values():
            each.sort(key=lambda found: found["rank"])

    def verdict(self, job: str) -> dict[str, Any]:
        """The chief's."""
        return self.jobs[job][0]["verdict"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    jobs = ("input", "host", "plain", "several")
    return Ran(tmp_path_factory.mktemp("alone"), "one_device", 1, *jobs)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    jobs = ("straggler", "communication", "stopped")
    name = "multi_worker_mirrored,communication=ring"
    return Ran(tmp_path_factory.mktemp("two"), name, 2, *jobs)


def test_a_slow_map_is_named(alone: Ran) -> None:
    found = alone.verdict("input")
    assert found["kind"] == "input-bound"
    assert re.search(r"waits for `map` of slow_map at jobs\.py:\d+\.$", found["sentence"])
    assert "num_parallel_calls" in found["advice"]
    assert found["share"] > 0.5


def test_a_slow_callback_is_named(alone: Ran) -> None:
    found = alone.verdict("host")
    assert found["kind"] == "host-bound"
    assert re.search(
        r"most of it in Sleeps\.on_train_batch_end at jobs\.py:\d+\.$", found["sentence"]
    )
    slow, *_ = alone.jobs["host"][0]["causes"]
    assert slow["seconds"] >= SLEEP_S * slow["steps"]


def test_a_slow_worker_is_named(two: Ran) -> None:
    found = two.verdict("straggler")
    assert found["kind"] == "straggler"
    assert re.match(r"straggler: worker 1 \(127\.0\.0\.1:\d+\) takes", found["sentence"])
    assert found["sentence"].endswith("most of the difference is computing.")


def test_slow_communication_is_told_from_computing(two: Ran) -> None:
    found = two.verdict("communication")
    assert found["kind"] == "communication-bound"
    assert "tfaccel[mpi]" in found["advice"]


def test_rows_and_steps_are_counted(alone: Ran) -> None:
    (found,) = alone.jobs["plain"]
    windows = found["windows"]
    assert sum(w["steps"] for w in windows) == 2 * STEPS
    assert sum(w["examples"] for w in windows) == 2 * ROWS
    assert [w["number"] for w in windows] == list(range(len(windows)))
    assert [w["step"] for w in windows[1:]] == [1, 6, 11, 16, 21]
    assert all(w["tokens"] is None for w in windows)
    assert sum(w["between_s"] for w in windows) > 0
    for w in windows:
        parts = [w[f"{p}_s"] for p in ("input", "compute", "communication", "host")]
        assert sum(parts) == pytest.approx(w["seconds"])


def test_scalars_are_written_for_tensorboard(alone: Ran) -> None:
    (found,) = alone.jobs["plain"]
    assert found["scalars"]["monitor/step_time_ms"] == [6, 11, 16, 21, 24]
    assert found["scalars"]["monitor/share/input"] == [6, 11, 16, 21, 24]
    assert found["scalars"]["monitor/compiling_s"] == [1]


def test_operations_of_a_step_are_counted(alone: Ran) -> None:
    products = 16 * 16 + 16 * 16 + 16 * 2
    (found,) = alone.jobs["plain"]
    # Forward, with respect to the weights, and with respect to what every layer but the first gets.
    assert found["windows"][-1]["flops"] == 2 * BATCH * (3 * products - 16 * 16)
    assert found["windows"][-1]["peak_flops"] is None
    (reason,) = found["runs"][0]["not_measured"]
    assert reason.startswith("MFU: the peak of ")


def test_batches_that_are_taken_inside_of_a_call_are_not_measured(alone: Ran) -> None:
    (found,) = alone.jobs["several"]
    assert sum(w["steps"] for w in found["windows"]) == STEPS
    assert {w["input_s"] for w in found["windows"]} == {None}
    assert {w["examples"] for w in found["windows"]} == {None}
    assert any("waiting for input" in reason for reason in found["runs"][0]["not_measured"])
    assert "input -" in alone.output


def test_the_function_of_a_step_is_put_back(alone: Ran) -> None:
    (found,) = alone.jobs["plain"]
    assert found["is_put_back"]


def test_the_chief_has_the_windows_of_all_and_each_worker_its_own_file(two: Ran) -> None:
    record = read_path(two.folder / "straggler")
    assert [run.worker for run in record.runs] == [0, 1]
    assert len({run.run for run in record.runs}) == 1
    assert record.ended
    chief, other = two.jobs["straggler"]
    assert [w["worker"] for w in chief["windows"]] == [0, 1] * (len(chief["windows"]) // 2)
    assert chief["windows"] == other["windows"]
    own = [json.loads(s) for s in (two.folder / "straggler" / "worker-1.jsonl").open()]
    assert {line["worker"] for line in own} == {1}
    assert not (two.folder / "straggler" / "worker-1.html").exists()
    assert (two.folder / "straggler" / "report.html").stat().st_size > 5000
    assert list((two.folder / "straggler").glob("events.out.tfevents.*"))
    assert sum(w["examples"] for w in chief["windows"]) == 2 * ROWS


def test_the_fast_worker_waits_for_the_slow_one(two: Ran) -> None:
    steady = [w for w in two.jobs["straggler"][0]["windows"] if w["number"]]
    fast, slow = ([w for w in steady if w["worker"] == rank] for rank in (0, 1))
    for one, other in zip(fast, slow, strict=True):
        assert one["communication_s"] > SLEEP_S * one["steps"] / 2
        assert other["compute_s"] >= SLEEP_S * other["steps"]


def test_a_training_that_a_callback_stops_ends_on_all(two: Ran) -> None:
    for found in two.jobs["stopped"]:
        assert found["verdict"] is not None
        own = [w for w in found["windows"] if w["worker"] == found["rank"]]
        assert sum(w["steps"] for w in own) == 8


def test_lines_are_printed_by_the_chief_alone(two: Ran) -> None:
    lines = [line for line in two.output.splitlines() if "monitor: steps" in line]
    assert lines
    assert not [line for line in lines if line.lstrip().startswith(("[1]", "1|", "1:"))]
    assert two.output.count("where the time of a step goes") == len(two.jobs)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("strategy", "workers"),
    [
        ("one_device", 1),
        ("mirrored,devices=2", 1),
        ("multi_worker_mirrored,communication=ring", 2),
        ("multi_worker_mirrored,communication=mpi", 2),
        ("model_parallel,mesh=batch=2", 2),
    ],
)
def test_under_every_strategy(strategy: str, workers: int, tmp_path: Path) -> None:
    ran = Ran(tmp_path, strategy, workers, "plain", "host", "again", "resumed", "same", "several")
    assert ran.verdict("host")["kind"] == "host-bound"
    for result in ran.jobs["same"]:
        assert result["equal"]
    assert all(result["is_put_back"] for job in ("plain", "again") for result in ran.jobs[job])
    for job in ("plain", "again", "resumed"):
        for result in ran.jobs[job]:
            own = [w for w in result["windows"] if w["worker"] == result["rank"]]
            epochs = 2 if job == "plain" else 1
            assert sum(w["steps"] for w in own) == epochs * STEPS
            assert sum(w["examples"] for w in own) == epochs * ROWS


@pytest.mark.exhaustive
def test_over_mpi(tmp_path: Path) -> None:
    name = "multi_worker_mirrored,communication=mpi"
    ran = Ran(tmp_path, name, 2, "straggler", "input", "stopped")
    assert ran.verdict("straggler")["kind"] == "straggler"
    assert ran.verdict("input")["kind"] == "input-bound"
