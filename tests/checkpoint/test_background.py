"""What is written beside the training is the state of its batch, and a failure is all workers'."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import tfaccel
from tests.checkpoint.data import rows
from tests.checkpoint.models import dense
from tests.checkpoint.run import Stops
from tests.checkpoint.same import assert_same
from tests.checkpoint.test_resume import forgotten, run
from tfaccel.checkpoint import checkpoint_manager, manifest, preemption, sharded_files
from tfaccel.checkpoint.sharded_reader import open_checkpoint
from tfaccel.distribute.broadcast import broadcast_text
from tfaccel.errors import CheckpointError

__all__ = ["forgotten"]

ALONE = pytest.mark.child(devices=4)


class Counts(keras.callbacks.Callback):
    """Has a state of its own, an array that it writes to; and does something after some batches."""

    def __init__(self, after: Callable[[int], None]) -> None:
        super().__init__()
        self.seen, self.after = np.zeros(3), after

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seen += 1
        self.after(int(self.seen[0]))

    def on_train_end(self, logs: Any = None) -> None:
        self.after(0)


def embedding(**options: Any) -> keras.Model:
    """Some of its updates are of a few rows, some of whole variables in one pass over memory."""
    inputs = keras.Input((6,))
    tokens = keras.ops.cast(inputs[:, :1], "int32")
    found = keras.layers.Flatten()(keras.layers.Embedding(44, 3)(tokens))
    hidden = keras.layers.Concatenate()([found, inputs[:, 1:]])
    hidden = keras.layers.BatchNormalization()(keras.layers.Dense(8, "tanh")(hidden))
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Dropout(0.3)(hidden)))
    model.compile(keras.optimizers.Adam(0.01), "mse", **options)
    return model


def fit(out: Any, strategy: Any, after: Any, make: Any = embedding, **options: Any) -> keras.Model:
    """Saves after each third of six batches of each of three epochs."""
    resume = tfaccel.checkpoint.resume(out, every=3, keep=9, **options)
    with strategy.scope():
        model = make()
    counts = Counts(after)
    model.fit(*rows(), batch_size=8, epochs=3, verbose=0, callbacks=[counts, resume])
    return model


def held(directory: Path) -> dict[str, Any]:
    """All that the checkpoints in a directory hold."""
    contents: dict[str, Any] = {}
    for path in sorted(directory.glob("step-*")):
        assert manifest.damage(str(path)) == ""
        reader = open_checkpoint(str(path))
        for name in reader.shapes():
            contents[f"{path.name}/{name}"] = reader.read(name).numpy().tolist()
        for file in path.glob("*-*.json"):
            contents[f"{path.name}/{file.name}"] = json.loads(file.read_text())
    return contents


def written_late(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Holds each write back; gives what lets it go two batches later, and at the end."""
    go, plain = threading.Event(), sharded_files.write_part

    def write_part(*args: Any) -> None:
        assert go.wait(120)
        go.clear()
        plain(*args)

    def after(batches: int) -> None:
        if batches == 0 or (batches > 3 and batches % 3 == 2):
            go.set()

    monkeypatch.setattr(sharded_files, "write_part", write_part)
    return after


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("one_device", {}),
        pytest.param("one_device", {"jit_compile": True}, marks=pytest.mark.exhaustive),
        pytest.param("mirrored", {}, marks=pytest.mark.exhaustive),
    ],
)
@ALONE
def test_what_is_taken_is_the_state_of_its_batch(
    name: str, options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"devices": 2} if name == "mirrored" else {}
    made = tfaccel.strategy(name, device_type="cpu", **given)
    _compare(made, lambda: embedding(**options), tmp_path, monkeypatch)


@pytest.mark.child(devices=4, group="mesh")
def test_what_is_taken_on_a_mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tfaccel.strategy(
        "model_parallel", mesh="batch=2,model=2", layouts="auto", device_type="cpu"
    )
    _compare(made, dense, tmp_path, monkeypatch)


def _compare(strategy: Any, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(tmp_path / "at once", strategy, lambda batches: None, make, asynchronous=False)
    keras.backend.clear_session()
    keras.utils.set_random_seed(1)
    fit(tmp_path / "late", strategy, written_late(monkeypatch), make)
    first, second = held(tmp_path / "at once"), held(tmp_path / "late")
    assert len({name.partition("/")[0] for name in first}) == 6
    assert first == second


def cannot_write(monkeypatch: pytest.MonkeyPatch, rank: int) -> tuple[threading.Event, list[int]]:
    """The third checkpoint cannot be written by one worker; and the batches that were done."""
    plain, failed, done = sharded_files.write_part, threading.Event(), []

    def write_part(begun: str, own: int, *more: Any) -> None:
        if own == rank and begun.endswith("9"):
            failed.set()
            raise OSError("no space")
        plain(begun, own, *more)

    monkeypatch.setattr(sharded_files, "write_part", write_part)
    return failed, done


@ALONE
def test_what_could_not_be_written_is_an_error_after_the_next_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed, done = cannot_write(monkeypatch, rank=0)
    _fails_at_ten(tmp_path, tfaccel.strategy("one_device"), failed, done, "OSError: no space")
    assert checkpoint_manager.newest(str(tmp_path)).endswith("6")


@pytest.mark.child(workers=2)
@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.exhaustive)])
def test_what_one_worker_could_not_write_is_the_same_error_on_all(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preemption, "_POLL_INTERVAL_S", 0.0)  # after every step
    strategy = tfaccel.strategy("multi_worker_mirrored", device_type="cpu", devices=1)
    path = Path(broadcast_text(strategy, str(tmp_path)))
    failed, done = cannot_write(monkeypatch, rank)
    failed = failed if strategy.cluster.rank == rank else None
    _fails_at_ten(path, strategy, failed, done, f"worker {rank}: OSError: no space")
    if strategy.cluster.is_chief:
        assert checkpoint_manager.newest(str(path)).endswith("6")


@pytest.mark.child(workers=2)
@pytest.mark.parametrize(
    "where", ["/proc/nothing/run", pytest.param("file", marks=pytest.mark.exhaustive)]
)
def test_a_directory_that_the_chief_cannot_use_is_the_same_error_on_all(
    where: str, tmp_path: Path
) -> None:
    strategy = tfaccel.strategy("multi_worker_mirrored", device_type="cpu", devices=1)
    (tmp_path / "file").touch()
    path = Path(broadcast_text(strategy, str(tmp_path / where)))
    with pytest.raises(CheckpointError, match=r"\(worker 0: (FileNotFound|NotFound)Error: .*expec"):
        fit(path, strategy, lambda batches: None)


@pytest.mark.child(workers=2)
def test_a_directory_that_one_worker_cannot_use_is_the_same_error_on_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = tfaccel.strategy("multi_worker_mirrored", device_type="cpu", devices=1)
    path = Path(broadcast_text(strategy, str(tmp_path)))

    def newest(*_: str) -> str:
        raise PermissionError("denied")

    if strategy.cluster.rank == 1:
        monkeypatch.setattr(checkpoint_manager, "newest", newest)
    with pytest.raises(CheckpointError, match=r"\(worker 1: PermissionError: denied\); expected"):
        fit(path, strategy, lambda batches: None)


def _fails_at_ten(path: Path, strategy: Any, failed: Any, done: list[int], reason: str) -> None:
    def after(batches: int) -> None:
        done.append(batches)
        if batches == 10 and failed is not None:
            assert failed.wait(120)
            _thread_ends()

    with pytest.raises(
        CheckpointError, match=rf"step-0000000009 was not written \({reason}\); exp"
    ):
        fit(path, strategy, after)
    assert done == list(range(1, 11))


def _thread_ends() -> None:
    """Waits for the threads that write here."""
    for thread in threading.enumerate():
        if thread.name.startswith("tfaccel: "):
            thread.join()


@ALONE
def test_a_notice_while_a_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = lambda: tfaccel.strategy("one_device", device_type="cpu")  # noqa: E731
    run(tmp_path / "whole", create)
    out, go, plain = tmp_path / "told", threading.Event(), sharded_files.write_part

    def write_part(*args: Any) -> None:
        assert go.wait(120)
        plain(*args)

    def tell() -> None:
        signal.raise_signal(signal.SIGTERM)
        go.set()

    monkeypatch.setattr(sharded_files, "write_part", write_part)
    with pytest.raises(SystemExit) as ended:
        run(out, create, stops=Stops(4, "step", tell))
    assert ended.value.code == 33
    saved = [str(path) for path in sorted((out / "checkpoints").glob("step-*"))]
    assert [path[-1] for path in saved] == ["3", "4"]
    assert [manifest.damage(path) for path in saved] == ["", ""]
    run(out, create)
    assert_same(tmp_path / "whole", out)


@ALONE
def test_what_a_killed_run_had_begun_is_removed(tmp_path: Path) -> None:
    left = [tmp_path / ".writing.step-0000000002", tmp_path / ".old.step-0000000001"]
    for path in left:
        path.mkdir()
    fit(tmp_path, tfaccel.strategy("one_device", device_type="cpu"), lambda batches: None)
    assert not [path for path in left if path.exists()]
