"""A run that was stopped ends with the bits of one that was not."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import logging

import tfaccel
from tests.checkpoint.data import DATA, rows
from tests.checkpoint.models import dense
from tests.checkpoint.run import Stops, train
from tfaccel.errors import CheckpointError

pytestmark = pytest.mark.child(devices=4)


class LostError(Exception):
    """Stands for a machine that is lost, in the process of the test."""


def lose() -> None:
    raise LostError


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Names and seeds begin anew, as in another process."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(1)
    yield
    keras.backend.clear_session()


def strategy(kind: str, **options: Any) -> Any:
    return tfaccel.strategy(kind, device_type="cpu", **options)


def run(out: Path, made: Any, stop: int | None = None, phase: str = "step", **more: Any) -> None:
    """Trains as in a process of its own, up to the batch after which it is lost."""
    out.mkdir(exist_ok=True)
    keras.backend.clear_session()
    keras.utils.set_random_seed(1)
    if stop is None:
        train(str(out), made(), **more)
        return
    with pytest.raises(LostError):
        train(str(out), made(), stops=Stops(stop, phase, lose), **more)


def assert_same(first: Path, second: Path, ranks: int = 1) -> None:
    """Weights, slots and history are the same bits, and so is what each batch was seen to be."""
    for rank in range(ranks):
        ours, theirs = (np.load(folder / f"end-{rank}.npz") for folder in (first, second))
        assert ours.files == theirs.files
        for name in ours.files:
            np.testing.assert_array_equal(ours[name], theirs[name])
        assert _history(first, rank) == _history(second, rank)
        assert _seen(first, rank) == _seen(second, rank)


def _history(out: Path, rank: int) -> Any:
    return json.loads((out / f"history-{rank}.json").read_text())


def _seen(out: Path, rank: int) -> dict[int, Any]:
    lines = (out / f"seen-{rank}.jsonl").read_text().splitlines()
    return dict(json.loads(line) for line in lines)


def rarely(cases: Any, always: Any) -> list[Any]:
    """Cases of which only some run each time."""
    rare = pytest.mark.exhaustive
    return [case if case in always else pytest.param(case, marks=rare) for case in cases]


@pytest.mark.parametrize("data", rarely(DATA, ("arrays", "tf.data that draws")))
def test_the_place_in_the_data(data: str, tmp_path: Path) -> None:
    made = lambda: strategy("one_device")  # noqa: E731
    run(tmp_path / "whole", made, data=data)
    run(tmp_path / "lost", made, stop=10, data=data)
    run(tmp_path / "lost", made, data=data)
    assert_same(tmp_path / "whole", tmp_path / "lost")


RARE = pytest.mark.exhaustive


@pytest.mark.parametrize(
    ("stop", "phase", "every", "data"),
    [
        (12, "step", "epoch", "PyDataset"),
        pytest.param(12, "step", "epoch", "arrays", marks=RARE),
        pytest.param(3, "step", 3, "arrays", marks=RARE),
        pytest.param(6, "validation", 3, "arrays", marks=RARE),
        pytest.param(17, "step", 4, "arrays", marks=RARE),
    ],
)
def test_the_place_in_the_run(stop: int, phase: str, every: Any, data: str, tmp_path: Path) -> None:
    made = lambda: strategy("mirrored", devices=2)  # noqa: E731
    run(tmp_path / "whole", made, every=every, data=data)
    run(tmp_path / "lost", made, stop=stop, phase=phase, every=every, data=data)
    run(tmp_path / "lost", made, every=every, data=data)
    assert_same(tmp_path / "whole", tmp_path / "lost")


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("gan", {}),
        pytest.param("draws", {}, marks=pytest.mark.exhaustive),
        pytest.param("accumulating", {}, marks=pytest.mark.exhaustive),
        pytest.param(
            "accumulating", {"gradient_accumulation": "local"}, marks=pytest.mark.exhaustive
        ),
        pytest.param("scaled", {}, marks=pytest.mark.exhaustive),
        pytest.param("wide", {"gradient_compression": "powersgd"}, marks=pytest.mark.exhaustive),
        pytest.param("dense", {"local_steps": 4}, marks=pytest.mark.exhaustive),
    ],
)
def test_what_a_strategy_and_its_optimizers_keep(model: str, options: Any, tmp_path: Path) -> None:
    made = lambda: strategy("mirrored", devices=2, **options)  # noqa: E731
    run(tmp_path / "whole", made, model=model)
    run(tmp_path / "lost", made, stop=10, model=model)
    run(tmp_path / "lost", made, model=model)
    assert_same(tmp_path / "whole", tmp_path / "lost")


def test_a_run_is_lost_twice_and_its_last_checkpoint_is_cut(tmp_path: Path) -> None:
    made = lambda: strategy("one_device")  # noqa: E731
    run(tmp_path / "whole", made)
    run(tmp_path / "lost", made, stop=7)
    run(tmp_path / "lost", made, stop=7)
    newest = max((tmp_path / "lost" / "checkpoints").iterdir())
    data = max(newest.glob("*.data*"))
    data.write_bytes(data.read_bytes()[:-1])
    run(tmp_path / "lost", made)
    assert_same(tmp_path / "whole", tmp_path / "lost")


def test_a_run_without_a_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.utils, "set_random_seed", lambda seed: tf.random.set_seed(None))
    made = lambda: strategy("one_device")  # noqa: E731
    run(tmp_path / "lost", made, stop=4, data="tf.data")
    shutil.copytree(tmp_path / "lost", tmp_path / "again")
    run(tmp_path / "lost", made, data="tf.data")
    np.random.seed(5)
    run(tmp_path / "again", made, data="tf.data")
    assert_same(tmp_path / "lost", tmp_path / "again")


@pytest.mark.child(devices=4, group="mesh")
def test_on_a_mesh(tmp_path: Path) -> None:
    made = lambda: strategy("model_parallel", mesh="batch=2,model=2", layouts="auto")  # noqa: E731
    run(tmp_path / "whole", made)
    run(tmp_path / "lost", made, stop=10)
    run(tmp_path / "lost", made)
    assert_same(tmp_path / "whole", tmp_path / "lost")


def test_a_run_that_has_ended_ends_at_once_and_may_be_longer(tmp_path: Path) -> None:
    made = lambda: strategy("one_device")  # noqa: E731
    run(tmp_path / "whole", made)
    run(tmp_path / "ended", made, epochs=2, every=5)
    before = _history(tmp_path / "ended", 0)
    run(tmp_path / "ended", made, epochs=2, every=5)
    assert _history(tmp_path / "ended", 0) == before
    run(tmp_path / "ended", made)
    assert_same(tmp_path / "whole", tmp_path / "ended")


def test_a_run_that_a_callback_has_stopped_stays_stopped(tmp_path: Path) -> None:
    class StopsTraining(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if int(self.model.optimizer.iterations) == 9:
                self.model.stop_training = True

    def trained(folder: Path, *more: Any) -> Any:
        keras.backend.clear_session()
        keras.utils.set_random_seed(1)
        with strategy("one_device").scope():
            model = dense()
        resume = tfaccel.checkpoint.resume(folder, every=3)
        return model.fit(
            *rows(),
            batch_size=8,
            epochs=3,
            validation_data=rows(12),
            verbose=0,
            callbacks=[StopsTraining(), resume, *more],
        ).history

    whole = trained(tmp_path / "whole")
    assert len(whole["loss"]) == 2
    with pytest.raises(LostError):
        trained(tmp_path / "lost", Stops(9, "validation", lose))
    assert trained(tmp_path / "lost") == whole
    assert trained(tmp_path / "lost") == whole


def test_another_models_checkpoint_is_one_line(tmp_path: Path) -> None:
    with strategy("one_device").scope():
        first, second = dense(), dense(units=5)
    x, y = rows()
    first.fit(x, y, verbose=0, callbacks=[tfaccel.checkpoint.resume(tmp_path)])
    with pytest.raises(CheckpointError, match=r"has nothing of that shape for .* expected the mod"):
        second.fit(x, y, verbose=0, callbacks=[tfaccel.checkpoint.resume(tmp_path)])


def test_a_backup_that_loses_the_batch_is_told(tmp_path: Path) -> None:
    with strategy("mirrored", devices=2).scope():
        model = dense()
    backup = keras.callbacks.BackupAndRestore(tmp_path, save_freq=3)
    with mock.patch.object(logging, "warning") as warned:
        model.fit(*rows(), verbose=0, callbacks=[backup], validation_data=rows(12))
    ((line, *values),) = (call.args for call in warned.call_args_list)
    assert "use tfaccel.checkpoint.resume(directory, every=3)" in line % tuple(values)


def test_the_signal_means_what_it_did_when_fit_has_failed(tmp_path: Path) -> None:
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append("before"))
    try:
        run(tmp_path, lambda: strategy("one_device"), stop=4)
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == ["before"]


@pytest.mark.parametrize("given", [{"every": 0}, {"every": "step"}, {"keep": 0}])
def test_what_it_takes_is_checked(given: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{next(iter(given))} is .*, expected"):
        tfaccel.checkpoint.resume(tmp_path, **given)
