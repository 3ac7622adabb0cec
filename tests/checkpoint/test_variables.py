"""Checkpoints: where they are written, and what all hear when one process cannot."""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import run_child
from tfaccel import checkpoint
from tfaccel.checkpoint import checkpoint_manager, manifest
from tfaccel.distribute.files import atomic
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


def flip(path: Path) -> None:
    content = bytearray((path / FILE).read_bytes())
    content[-1] ^= 1
    (path / FILE).write_bytes(content)


def cut(path: Path) -> None:
    (path / FILE).write_bytes((path / FILE).read_bytes()[:-1])


def lose(path: Path) -> None:
    (path / "manifest.json").unlink()


FILE = "variables-00000.safetensors"


@pytest.mark.parametrize(
    ("harm", "says"),
    [(flip, f"{FILE} does not match"), (cut, f"{FILE} does not"), (lose, "it has no manifest")],
)
def test_a_damaged_checkpoint_is_not_restored(harm: Any, says: str, tmp_path: Path) -> None:
    checkpoint.save(model(2.0), tmp_path / "step-1")
    harm(tmp_path / "step-1")
    again = model()
    with pytest.raises(CheckpointError, match=rf"is damaged \({says}"):
        checkpoint.restore(again, tmp_path / "step-1")
    assert [float(w.max()) for w in again.get_weights()] == [1.0, 1.0]


def test_there_is_a_checkpoint_at_any_time(tmp_path: Path) -> None:
    path, ended, looked = tmp_path / "step-1", threading.Event(), [0]
    checkpoint.save(model(), path)

    def look() -> None:
        while not ended.is_set():
            assert (path / "manifest.json").exists()
            looked[0] += 1

    with ThreadPoolExecutor() as pool:
        looks = pool.submit(look)
        for value in range(20):
            checkpoint.save(model(value), path)
        ended.set()
        looks.result()
    assert looked[0] > 100
    assert [one.name for one in tmp_path.iterdir()] == ["step-1"]


def test_where_directories_cannot_be_exchanged_one_is_left_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    path = tmp_path / "step-0000000001"
    for value in (1.0, 2.0):
        checkpoint.save(model(value), path)
    again = model()
    checkpoint.restore(again, path)
    assert float(again.get_weights()[0].max()) == 2.0
    old = path.rename(tmp_path / f".old.{path.name}")  # as a process leaves it that is killed here
    assert checkpoint_manager.newest(str(tmp_path)) == str(old)


def test_nothing_is_left_of_what_could_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(manifest, "seal", full)
    with pytest.raises(CheckpointError, match=r"was not written \(OSError: No space"):
        checkpoint.save(model(), tmp_path / "step-1")
    assert not list(tmp_path.iterdir())


class Gan(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.generator, self.critic = keras.layers.Dense(3), keras.layers.Dense(1)
        self.of_generator, self.of_critic = keras.optimizers.Adam(), keras.optimizers.Adam()
        self.compile(loss="mse")

    def call(self, inputs: Any) -> Any:
        return self.critic(self.generator(inputs))

    def train_step(self, data: Any) -> Any:
        for part, optimizer in ((self.critic, self.of_critic), (self.generator, self.of_generator)):
            with tf.GradientTape() as tape:
                loss = keras.ops.mean(self(data[0]) ** 2)
            weights = part.trainable_variables
            optimizer.apply(tape.gradient(loss, weights), weights)
        return {"loss": loss}


@pytest.mark.parametrize("trained", [True, False])
def test_optimizers_of_a_part_each_are_restored_into_a_fresh_model(
    trained: bool, tmp_path: Path
) -> None:
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    saved, fresh = Gan(), Gan()
    for one in (saved, fresh):
        one(x)
    if trained:
        saved.fit(x, x[:, :1], batch_size=4, verbose=0)
    checkpoint.save(saved, tmp_path / "step-1")
    checkpoint.restore(fresh, tmp_path / "step-1")
    for name in ("of_generator", "of_critic"):
        ours, theirs = getattr(fresh, name), getattr(saved, name)
        assert ours.built is theirs.built is trained
        assert len(ours.variables) == len(theirs.variables)
        for a, b in zip(ours.variables, theirs.variables, strict=True):
            np.testing.assert_array_equal(a.numpy(), b.numpy())
    for one in (saved, fresh):
        one.fit(x, x[:, :1], batch_size=4, shuffle=False, verbose=0)
    for a, b in zip(fresh.get_weights(), saved.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


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
