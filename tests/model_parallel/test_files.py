"""What one mesh has written, another one reads, and so do other strategies and one device.

Every reader trains on, and must end where the writer does.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import tfaccel
from tests.support import run_child, run_forked
from tfaccel.errors import CheckpointError

ONE_DEVICE = ("one_device",)
MIRRORED = ("mirrored",)
SHARDED_2X2 = ("model_parallel", "batch=2,model=2", "fully_sharded")
SHARDED_4X1 = ("model_parallel", "batch=4", "fully_sharded")
MODEL_1X4 = ("model_parallel", "batch=1,model=4", "auto")

# Writer and readers, each a strategy and its number of processes.
TABLE = {
    "a mesh": ((SHARDED_2X2, 1), [(MODEL_1X4, 2), (ONE_DEVICE, 1), (MIRRORED, 1)]),
    "two processes": ((SHARDED_2X2, 2), [(ONE_DEVICE, 1)]),
    # tests/checkpoint/test_resume.py resumes on another mesh in every run.
    "two processes for a mesh": ((SHARDED_2X2, 2), [(SHARDED_4X1, 1)]),
    "one device": ((ONE_DEVICE, 1), [(SHARDED_2X2, 2)]),
}


def run(action: str, folder: Path, strategy: tuple[str, ...], workers: int) -> dict[str, Any]:
    module = ["tests.model_parallel.files", action, str(folder), *strategy]
    alone = workers == 1
    printed = run_forked(module) if alone else run_child(["-m", *module], workers=workers)
    return json.loads(printed.partition("SAID ")[2].splitlines()[0])  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize(
    "written_by",
    [pytest.param(w, marks=() if w == "two processes" else pytest.mark.exhaustive) for w in TABLE],
)
def test_files_of_a_mesh_load_on_one_device_and_back(written_by: str, tmp_path: Path) -> None:
    (strategy, workers), readers = TABLE[written_by]
    folder = tmp_path / "written"
    folder.mkdir()
    written = run("write", folder, strategy, workers)
    wanted = written["third epoch"]
    assert workers == 1 or "(Reverses) is the first whose output differs" in written["refused"]
    names = {path.name for path in folder.iterdir()}
    assert {"model.keras", "model.weights.h5", "exported", "sharded", "backup"} <= names
    assert not [name for name in names if name.startswith(".")], "a half-written file is left"
    kept = {path.name for path in (folder / "kept").iterdir()} - {"file"}
    assert kept == {"2.keras", "2.weights.h5"}, "two steps, before the epoch ended"
    assert len(list((folder / "board" / "train").glob("events*"))) == 1, "the chief logs alone"
    for number, (reader, processes) in enumerate(readers):
        copy = tmp_path / f"read{number}"
        shutil.copytree(folder, copy)
        said = run("read", copy, reader, processes)
        assert said.pop("backup epochs") == [2], f"{reader} did not resume after two epochs"
        assert {"keras", "weights", "sharded", "backup"} <= set(said)
        for how, found in said.items():
            np.testing.assert_allclose(found, wanted, rtol=1e-4, err_msg=f"{how}, {reader}")


def model(units: int = 4) -> keras.Model:
    made = keras.Sequential([keras.Input((3,)), keras.layers.Dense(units)])
    made.compile("sgd", "mse")
    return made


def test_a_checkpoint_replaces_the_one_before(tmp_path: Path) -> None:
    first, second = model(), model()
    tfaccel.checkpoint.save(first, tmp_path / "last")
    tfaccel.checkpoint.save(second, tmp_path / "last")
    tfaccel.checkpoint.restore(first, tmp_path / "last")
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_a_missing_checkpoint_gets_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"nowhere is not a checkpoint .*; expected a directory"
    ):
        tfaccel.checkpoint.restore(model(), tmp_path / "nowhere")


def test_another_models_checkpoint_gets_one_line(tmp_path: Path) -> None:
    tfaccel.checkpoint.save(model(), tmp_path / "last")
    with pytest.raises(
        CheckpointError, match=r"has float32 of shape \(3, 4\) for .* of shape \(3, 5\)"
    ):
        tfaccel.checkpoint.restore(model(units=5), tmp_path / "last")


def test_an_unbuilt_model_gets_one_line(tmp_path: Path) -> None:
    unbuilt = keras.Sequential([keras.layers.Dense(3)])
    with pytest.raises(CheckpointError, match="has no variables yet; expected a built model"):
        tfaccel.checkpoint.save(unbuilt, tmp_path / "last")
