"""A run that was saved on some workers and devices resumes on others: the same global batches."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from absl import logging

from tests.checkpoint.models import dense
from tests.checkpoint.test_resume import forgotten, run, strategy
from tests.support import run_child
from tfaccel.checkpoint import run_state, run_variables, sharded_files
from tfaccel.checkpoint.recorder import Recorder
from tfaccel.checkpoint.run_state import Place
from tfaccel.checkpoint.sharded_files import write
from tfaccel.checkpoint.sharded_reader import open_checkpoint
from tfaccel.checkpoint.tensor_file import Shard, TensorFile
from tfaccel.checkpoint.topology import Topology
from tfaccel.errors import CheckpointError

__all__ = ["forgotten"]  # a fixture

pytestmark = pytest.mark.child(devices=4)
RARE = pytest.mark.exhaustive

MESH = ["--strategy=model_parallel", '--options={"mesh": "batch=2,model=2", "layouts": "auto"}']
RTOL = 1e-6
STOP = 10  # the checkpoint is after 9 batches: three within the second epoch


def one() -> Any:
    return strategy("one_device")


def process(out: Path, on: str, *more: str, data: str, codes: tuple[int, ...] = (0,)) -> None:
    """Trains in processes of its own: so many workers, or a mesh in one or more."""
    out.mkdir(exist_ok=True)
    kind, _, number = on.partition(" ")
    command = ["-m", "tests.checkpoint.run"]
    if number:
        launch = ["-m", "tfaccel.cli", "launch", f"--nproc={number}", "--show=all", "-m", "--"]
        command = [*launch, command[1]]
    options = MESH if kind == "mesh" else ["--strategy=multi_worker_mirrored"]
    run_child(
        [*command, str(out), *options, "--seed=1", "--model=alike", f"--data={data}", *more],
        codes=codes,
    )


def go(out: Path, on: str, data: str, stops: bool = False) -> None:
    """Trains on replicas here, or on workers or a mesh; to the end, or until it is lost."""
    kind, _, number = on.partition(" ")
    if kind == "replicas":
        made = one if number == "1" else lambda: strategy("mirrored", devices=int(number))
        run(out, made, stop=STOP if stops else None, model="alike", data=data)
    elif stops:
        # The last checkpoint is there when the run is lost.
        process(out, on, f"--kill={STOP}", "--synchronous", data=data, codes=(-9, 137))
    else:
        process(out, on, data=data)


def assert_close(whole: Path, other: Path) -> None:
    """The losses after each batch and each epoch, and exactly the rows of each batch."""
    first, second = (_seen(folder) for folder in (whole, other))
    assert first.keys() == second.keys()
    for step, logs in first.items():
        assert second[step].pop("row") == logs.pop("row")
        assert second[step] == pytest.approx(logs, rel=RTOL), step
    ours, theirs = (json.loads((f / "history-0.json").read_text()) for f in (whole, other))
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(theirs[name], ours[name], rtol=RTOL, err_msg=name)


def _seen(out: Path) -> dict[int, Any]:
    return dict(json.loads(line) for line in (out / "seen-0.jsonl").read_text().splitlines())


@pytest.mark.parametrize(
    ("saved", "goes_on", "data"),
    [
        ("workers 2", "replicas 1", "tf.data"),
        pytest.param("replicas 4", "replicas 2", "shuffled by batch", marks=RARE),
        pytest.param("replicas 1", "workers 2", "arrays", marks=RARE),
        pytest.param("workers 4", "workers 2", "arrays", marks=RARE),
        pytest.param("workers 4", "workers 3", "tf.data", marks=RARE),
        pytest.param("workers 4", "mesh", "arrays", marks=RARE),
        pytest.param("replicas 2", "mesh", "arrays", marks=RARE),
        pytest.param("mesh", "workers 2", "tf.data", marks=RARE),
        pytest.param("mesh", "replicas 1", "tf.data that repeats", marks=RARE),
        pytest.param("workers 4", "replicas 1", "tf.data", marks=RARE),
        pytest.param("workers 2", "mesh 2", "arrays", marks=RARE),
        pytest.param("mesh 2", "workers 3", "tf.data", marks=RARE),
    ],
)
def test_a_run_goes_on_on_others(saved: str, goes_on: str, data: str, tmp_path: Path) -> None:
    # One device is the reference of workers and of a mesh.
    go(tmp_path / "whole", saved if saved.startswith("replicas") else "replicas 1", data)
    go(tmp_path / "lost", saved, data, stops=True)
    assert int(_last(tmp_path / "lost")) == 9
    go(tmp_path / "lost", goes_on, data)
    assert_close(tmp_path / "whole", tmp_path / "lost")


def _last(out: Path) -> str:
    return max((out / "checkpoints").iterdir()).name.rpartition("-")[2]


def test_what_each_replica_has_accumulated_of_its_rows(tmp_path: Path) -> None:
    """Half of an update, which four replicas that reduce in every step complete."""
    two = lambda: strategy("mirrored", devices=2, gradient_accumulation="local")  # noqa: E731
    run(tmp_path / "whole", two, model="accumulating alike")
    run(tmp_path / "lost", two, stop=STOP, model="accumulating alike")
    run(tmp_path / "lost", lambda: strategy("mirrored", devices=4), model="accumulating alike")
    assert_close(tmp_path / "whole", tmp_path / "lost")


def test_what_changes_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Local steps are averaged where they end early; what one device has no use for is left out."""
    made = lambda: strategy("mirrored", devices=2, local_steps=4)  # noqa: E731
    run(tmp_path, made, stop=STOP, model="alike")
    with mock.patch.object(logging, "warning") as warned:
        run(tmp_path, one, model="alike")
    printed = capsys.readouterr().err.splitlines()
    assert printed.count("tfaccel: saved on 2 replicas, resuming on one device.") == 1
    said = [one.args[0] % one.args[1:] for one in warned.mock_calls]
    averaged, left_out = (line for line in said if "variables)" in line)
    assert averaged.startswith("tfaccel: replicas were trained separately and are averaged: ")
    assert "variables/strategy/steps_alone" in left_out


def test_different_values_that_nothing_makes_one_of_are_refused(tmp_path: Path) -> None:
    model = dense(replica_independent=True)
    model.own = tf.Variable([1.0, 2.0], name="own")
    made = run_variables.shards(model, one())
    (own,) = (shard for shard in made if "/own" in shard.name)
    parts = [Shard(f"{own.name}@{rank}.0", own.tensor * (1.0 + rank)) for rank in range(2)]
    path = str(tmp_path / "saved")
    write(one(), path, [shard for shard in made if shard is not own] + parts)
    with pytest.raises(CheckpointError, match=r"'own:0#0' .* expected to resume on 2 workers"):
        run_variables.restore(model, one(), open_checkpoint(path), Topology(2, 2))


@pytest.mark.parametrize("seeds", [(3, 3), (3, 4)])
def test_processes_of_which_each_had_its_own_random_state(
    seeds: tuple[int, int], tmp_path: Path
) -> None:
    recorder, path = Recorder(dense(), [], None), str(tmp_path / "saved")
    shards, texts = [], {}
    for rank, seed in enumerate(seeds):
        np.random.seed(seed)
        tf.random.get_global_generator().reset_from_seed(rank)  # as by each one's clock
        state = recorder.state(Place(0, 0, 0), 0, {}, b"", None)
        state = dataclasses.replace(state, topology=Topology(2, 2))
        cluster = SimpleNamespace(rank=rank, is_chief=rank == 0)
        shards += state.shards(cluster)
        texts |= state.texts(cluster)
    begun = sharded_files.begin(one(), path)
    sharded_files.write_part(begun, 0, TensorFile(shards).pieces(), texts)
    sharded_files.complete(begun, path, workers=1)
    reader = open_checkpoint(path)
    found = run_state.read_state(path, reader, None, Topology())
    assert run_state.processes_differ(path, reader, found) is (seeds == (3, 4))
