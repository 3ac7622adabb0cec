"""Checkpoints: where they are written, and what all hear when one process cannot."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import run_child
from tfaccel import checkpoint
from tfaccel.errors import CheckpointError


def model(value: float = 1.0) -> keras.Model:
    made = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    made.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    made.set_weights([np.full(w.shape, value) for w in made.get_weights()])
    return made


@pytest.mark.parametrize("where", ["ram://runs", "local"])
def test_a_checkpoint_is_replaced_on_local_and_remote_filesystems(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for value in (1.0, 2.0):
        checkpoint.save(model(value), f"{where}/step-1/")
    again = model()
    checkpoint.restore(again, f"{where}/step-1")
    assert [float(w.max()) for w in again.get_weights()] == [2.0, 2.0]
    assert [name.rstrip("/") for name in tf.io.gfile.listdir(where)] == ["step-1"]
    assert os.listdir(tmp_path) == ([] if "://" in where else ["local"])


@pytest.mark.parametrize("harm", ["flip", "cut"])
def test_a_damaged_checkpoint_is_not_restored(harm: str, tmp_path: Path) -> None:
    checkpoint.save(model(2.0), tmp_path / "step-1")
    file = tmp_path / "step-1" / "variables-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content if harm == "flip" else content[:-1])
    again = model()
    with pytest.raises(CheckpointError, match=r"is damaged \(variables-00000.safetensors does not"):
        checkpoint.restore(again, tmp_path / "step-1")
    assert [float(w.max()) for w in again.get_weights()] == [1.0, 1.0]


def test_a_checkpoint_of_another_type_is_refused(tmp_path: Path) -> None:
    checkpoint.save(model(), tmp_path / "step-1")
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, dtype="float64")])
    other.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    with pytest.raises(
        CheckpointError, match=r"has float32 of shape \(3, 2\) for .* of float64 of shape \(3, 2\)"
    ):
        checkpoint.restore(other, tmp_path / "step-1")


def test_a_worker_of_which_nothing_came_is_found_out(tmp_path: Path) -> None:
    ours, heard = model(), []

    def summed(tensors: list[Any]) -> list[Any]:
        heard.append(any(np.any(tensor) for tensor in tensors))
        return tensors

    cluster = SimpleNamespace(rank=0, is_chief=True, size=2)
    ours._distribute_strategy = SimpleNamespace(
        cluster=cluster, sum_over_workers=summed, scope=contextlib.nullcontext
    )
    with pytest.raises(
        CheckpointError, match=r"step-1 was not written \(.*no data received from work"
    ):
        checkpoint.save(ours, tmp_path / "step-1")
    assert heard == [False, False, True]
    assert not (tmp_path / "step-1").exists()


CANNOT = """
import sys, tfaccel
strategy = tfaccel.strategy("multi_worker_mirrored", device_type="cpu", devices=1)
import keras
with strategy.scope():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
try:
    tfaccel.checkpoint.save(model, sys.argv[1])
except tfaccel.errors.CheckpointError as error:
    print("SAID", error)
"""


def test_a_chief_that_cannot_write_is_the_same_error_on_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    said = run_child(["-c", CANNOT, str(tmp_path / "file" / "step-1")], workers=2)
    lines = {line.partition("SAID ")[2] for line in said.splitlines() if "SAID" in line}
    assert said.count("SAID") == 2
    (line,) = lines
    assert "step-1 was not written (" in line
    assert "expected a directory that every worker can write to" in line
