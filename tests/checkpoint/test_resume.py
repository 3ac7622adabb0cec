"""A run that was stopped ends with the bits of one that was not."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
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
from tests.checkpoint.same import assert_same, history
from tfaccel.checkpoint import manifest
from tfaccel.checkpoint.background import settle
from tfaccel.checkpoint.restart_counter import FILE, LIMIT, RestartCounter
from tfaccel.distribute.model_parallel.mesh_check import MeshChecks
from tfaccel.errors import CheckpointError
from tfaccel.exit_codes import NO_PROGRESS, PREEMPTED

pytestmark = pytest.mark.child(devices=4)


class LostError(Exception):
    """Stands for a machine that is lost, in the process of the test."""


def lose() -> None:
    raise LostError


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Names and seeds begin anew, as in another process."""
    anew()
    yield
    anew()


def anew() -> None:
    """As `clear_session`, which in addition looks for garbage each time."""
    keras.backend.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)


def strategy(kind: str, **options: Any) -> Any:
    return tfaccel.strategy(kind, device_type="cpu", **options)


def run(
    out: Path, create: Any, stop: int | None = None, phase: str = "step", **options: Any
) -> None:
    """Trains as in a process of its own, up to the batch after which it is lost."""
    out.mkdir(exist_ok=True)
    anew()
    if stop is None:
        train(str(out), create(), **options)
        return
    with pytest.raises(LostError):
        train(str(out), create(), stops=Stops(stop, phase, lose), **options)
    settle(options.get("directory", f"{out}/checkpoints"))


def rarely(cases: Any, always: Any) -> list[Any]:
    """Cases of which only some run each time."""
    rare = pytest.mark.exhaustive
    return [case if case in always else pytest.param(case, marks=rare) for case in cases]


def _kinds_of_data() -> list[Any]:
    # A run of arrays is killed twice, below.
    cases = rarely(DATA, ("tf.data that draws", "Grain"))
    absent = pytest.mark.skipif(find_spec("grain") is None, reason="grain is not installed")
    kinds = zip(DATA, cases, strict=True)
    return [
        pytest.param(kind, marks=[absent, *getattr(case, "marks", ())])
        if kind.startswith("Grain")
        else case
        for kind, case in kinds
    ]


@pytest.mark.parametrize("data", _kinds_of_data())
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
        # The run above has the first-step check, which takes as long as all the rest of these.
        ("gan", {"check": "off"}),
        ("compressed", {"gradient_compression": "powersgd", "check": "off"}),
        pytest.param("gan", {}, marks=pytest.mark.exhaustive),
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


@pytest.mark.parametrize(
    ("model", "stop", "phase"),
    [
        ("averaged", 9, "validation"),
        pytest.param("averaged by epoch", 8, "step", marks=RARE),
        pytest.param("averaged", 10, "step", marks=RARE),
        pytest.param("averaged by epoch", 9, "validation", marks=RARE),
    ],
)
def test_weights_that_a_callback_swaps(model: str, stop: int, phase: str, tmp_path: Path) -> None:
    made = lambda: strategy("one_device")  # noqa: E731
    run(tmp_path / "whole", made, model=model, every="epoch")
    run(tmp_path / "lost", made, stop, phase, model=model, every="epoch")
    run(tmp_path / "lost", made, model=model, every="epoch")
    assert_same(tmp_path / "whole", tmp_path / "lost")


def names(directory: str) -> list[str]:
    """The checkpoints in a directory, oldest first."""
    entries = sorted(name.rstrip("/") for name in tf.io.gfile.listdir(directory))
    return [name for name in entries if name.startswith("step-")]


def tear(directory: str) -> None:
    """Cuts the last byte off the newest checkpoint."""
    newest = f"{directory}/{names(directory)[-1]}"
    data = max(name for name in tf.io.gfile.listdir(newest) if name.endswith(".safetensors"))
    with tf.io.gfile.GFile(f"{newest}/{data}", "rb") as file:
        content = file.read()
    with tf.io.gfile.GFile(f"{newest}/{data}", "wb") as file:
        file.write(content[:-1])


@pytest.mark.parametrize("where", ["local", pytest.param("ram", marks=RARE)])
def test_a_run_killed_twice_resumes_past_a_truncated_checkpoint(where: str, tmp_path: Path) -> None:
    create = lambda: strategy("one_device")  # noqa: E731
    directory = f"ram://{tmp_path.name}" if where == "ram" else str(tmp_path / "checkpoints")
    run(tmp_path / "whole", create)
    run(tmp_path / "lost", create, stop=7, directory=directory)
    run(tmp_path / "lost", create, stop=7, directory=directory)
    tear(directory)
    run(tmp_path / "lost", create, directory=directory)
    assert_same(tmp_path / "whole", tmp_path / "lost")


@pytest.mark.parametrize(
    ("keep", "every", "left"),
    [
        (1, 5, [5]),
        pytest.param(2, 8, [3, 8], marks=RARE),
        pytest.param(2, 5, [3, 5], marks=RARE),
        pytest.param(1, 6, [6], marks=RARE),
    ],
)
def test_a_damaged_checkpoint_does_not_count_among_those_kept(
    keep: int, every: int, left: list[int], tmp_path: Path
) -> None:
    create = lambda: strategy("one_device")  # noqa: E731
    directory = str(tmp_path / "checkpoints")
    run(tmp_path, create, stop=7, every=3)
    tear(directory)
    assert names(directory) == ["step-0000000003", "step-0000000006"]
    options = {"every": every, "keep": keep, "asynchronous": False}
    run(tmp_path, create, stop=left[-1] + 1, **options)
    assert names(directory) == [f"step-{step:010d}" for step in left]
    assert not [name for name in names(directory) if manifest.damage(f"{directory}/{name}")]


@pytest.mark.parametrize("where", ["/proc/nothing/run", "file/run", "file"])
def test_a_directory_that_cannot_be_used_is_one_line(where: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        CheckpointError, match=r"cannot be read and written \(.*expected a directory"
    ) as raised:
        run(tmp_path / "run", lambda: strategy("one_device"), directory=str(tmp_path / where))
    assert "\n" not in str(raised.value)


def test_how_a_run_resumes_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    create = lambda: strategy("one_device")  # noqa: E731
    options = {"data": "a generator", "asynchronous": False}
    run(tmp_path, create, stop=4, **options)
    for stop, place, read in (
        (10, "step-0000000003: epoch 1, batch 4", "0 epochs and 3 batches"),
        (11, "step-0000000009: epoch 2, batch 4", "1 epochs and 3 batches"),
    ):
        capsys.readouterr()
        with mock.patch.object(logging, "warning") as warned:
            run(tmp_path, create, stop=stop, **options)
        printed = capsys.readouterr().err
        assert printed.count("resuming from") == 1
        assert f"tfaccel: resuming from {tmp_path}/checkpoints/{place}.\n" in printed
        ((line, *values),) = (call.args for call in warned.call_args_list)
        assert f"{read} are read again and skipped" in line % tuple(values)


def test_data_that_are_restored_are_not_warned_of(tmp_path: Path) -> None:
    create = lambda: strategy("one_device")  # noqa: E731
    run(tmp_path, create, stop=10)
    with mock.patch.object(logging, "warning") as warned:
        run(tmp_path, create)
    assert not warned.called


def test_a_run_without_a_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.utils, "set_random_seed", lambda seed: tf.random.set_seed(None))
    create = lambda: strategy("one_device")  # noqa: E731
    run(tmp_path / "lost", create, stop=4, data="tf.data")
    shutil.copytree(tmp_path / "lost", tmp_path / "again")
    run(tmp_path / "lost", create, data="tf.data")
    np.random.seed(5)
    run(tmp_path / "again", create, data="tf.data")
    assert_same(tmp_path / "lost", tmp_path / "again")


@pytest.mark.child(devices=4, group="mesh")
def test_on_a_mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = lambda: strategy("model_parallel", mesh="batch=2,model=2", layouts="auto")  # noqa: E731
    compared, compare = [], MeshChecks._compare
    monkeypatch.setattr(
        MeshChecks, "_compare", lambda *args: (compared.append(1), compare(*args))[1]
    )
    run(tmp_path / "whole", made, model="tf.random")
    run(tmp_path / "lost", made, model="tf.random", stop=10)
    assert len(compared) == 2
    run(tmp_path / "lost", made, model="tf.random")
    assert_same(tmp_path / "whole", tmp_path / "lost")
    assert len(compared) == 2  # the first try has compared this step
    mesh = lambda: strategy("model_parallel", mesh="batch=1,model=2", layouts="auto")  # noqa: E731
    run(tmp_path / "lost", mesh, model="tf.random", epochs=4)
    assert len(compared) == 4  # the step of the validation that was due, and of the next epoch


def test_a_run_that_has_ended_ends_at_once_and_may_be_longer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    create = lambda: strategy("one_device")  # noqa: E731
    run(tmp_path / "whole", create)
    run(tmp_path / "ended", create, epochs=2, every=5)
    before = history(tmp_path / "ended", 0)
    capsys.readouterr()
    run(tmp_path / "ended", create, epochs=2, every=5)
    assert "step-0000000012: the end of the run.\n" in capsys.readouterr().err
    assert history(tmp_path / "ended", 0) == before
    run(tmp_path / "ended", create)
    assert_same(tmp_path / "whole", tmp_path / "ended")


def test_a_run_that_a_callback_has_stopped_stays_stopped(tmp_path: Path) -> None:
    class StopsTraining(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if int(self.model.optimizer.iterations) == 9:
                self.model.stop_training = True

    def trained(folder: Path, *more: Any) -> Any:
        anew()
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
    says = r"has no variable of matching shape for .* expected the mod"
    with pytest.raises(CheckpointError, match=says):
        second.fit(x, y, verbose=0, callbacks=[tfaccel.checkpoint.resume(tmp_path)])


@pytest.mark.parametrize(("kind", "options"), [("mirrored", {"devices": 2}), ("one_device", {})])
def test_a_backup_that_loses_the_batch_is_warned_of(
    kind: str, options: Any, tmp_path: Path
) -> None:
    with strategy(kind, **options).scope():
        model = dense()
    backup = keras.callbacks.BackupAndRestore(tmp_path, save_freq=3)
    with mock.patch.object(logging, "warning") as warned:
        model.fit(*rows(), verbose=0, callbacks=[backup], validation_data=rows(12))
    ((line, *values),) = (call.args for call in warned.call_args_list)
    assert "use tfaccel.checkpoint.resume(directory, every=3)" in line % tuple(values)


class Noise(keras.layers.Layer):
    """Adds random numbers to its input, as `kind` says."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.seeds = keras.random.SeedGenerator(1)
        self.generator = tf.random.Generator.from_seed(2)
        self.inner = tf.function(lambda x: x + tf.random.normal(tf.shape(x)))

    def call(self, x: Any) -> Any:
        if self.kind == "tf.random":
            return x + tf.random.uniform(tf.shape(x))
        if self.kind == "tf.random in a function":
            return self.inner(x)
        if self.kind == "tf.random in a branch":
            return tf.cond(tf.reduce_sum(x) > 0, lambda: tf.random.shuffle(x), lambda: x)
        noise = self.generator.normal(tf.shape(x))
        return x + noise + keras.random.normal(keras.ops.shape(x), seed=self.seeds)


DRAWS = {
    "tf.random": "RandomUniform",
    "tf.random in a function": "RandomStandardNormal",
    "tf.random in a branch": "RandomShuffle",
    "seeds and generators": "",
}
STEPS = [
    # A strategy, its options, what the model is compiled with, and what it draws from in each run.
    ("one_device", {}, {}, tuple(DRAWS)),
    (
        *("mirrored", {"devices": 2, "check": "off"}, {}),
        ("tf.random in a function", "seeds and generators"),
    ),
    ("one_device", {}, {"steps_per_execution": 2}, ()),
    ("one_device", {}, {"jit_compile": True}, ()),
    ("one_device", {}, {"run_eagerly": True}, ("tf.random",)),
]


@pytest.mark.parametrize(
    ("strategy_kind", "options", "compiled", "kind"),
    [
        pytest.param(*step, kind, marks=() if kind in always else RARE)
        for *step, always in STEPS
        for kind in DRAWS
    ],
)
def test_a_step_that_draws_from_what_is_not_saved_is_warned_of(
    strategy_kind: str, options: Any, compiled: Any, kind: str, tmp_path: Path
) -> None:
    operation = DRAWS[kind]
    with strategy(strategy_kind, **options).scope():
        model = keras.Sequential([keras.Input((6,)), Noise(kind), keras.layers.Dense(2)])
        model.compile("sgd", "mse", **compiled)
    x = np.ones((16, 6), np.float32)
    with mock.patch.object(logging, "warning") as warned:
        for name in "ab":
            resume = tfaccel.checkpoint.resume(tmp_path / name)
            monitor = tfaccel.monitor(model.distribute_strategy, tmp_path / f"monitor {name}")
            callbacks = [resume] if name == "a" else [monitor, resume]
            model.fit(x, x[:, :2], batch_size=4, epochs=2, verbose=0, callbacks=callbacks)
    lines = [call.args[0] % call.args[1:] for call in warned.call_args_list]
    draws = [line for line in lines if "draws random numbers" in line]
    if compiled.get("run_eagerly") or not operation:
        assert not draws
    else:
        assert len(draws) == 2, "one for each fit"
        assert all(f" ({operation}) " in line for line in draws)
        assert all("use keras.random with a keras.random.SeedGenerator" in line for line in draws)


def test_a_second_fit_in_a_directory_is_warned_of(tmp_path: Path) -> None:
    with strategy("one_device").scope():
        model = dense()
    with mock.patch.object(logging, "warning") as warned:
        for _ in range(2):
            model.fit(*rows(), verbose=0, callbacks=[tfaccel.checkpoint.resume(tmp_path)])
    ((line, *values),) = (call.args for call in warned.call_args_list)
    assert f"the run in {tmp_path} had ended in an earlier fit" in line % tuple(values)


def test_the_signal_means_what_it_did_when_fit_has_failed(tmp_path: Path) -> None:
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append("before"))
    try:
        run(tmp_path, lambda: strategy("one_device"), stop=4)
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == ["before"]


def test_the_signal_means_what_it_did_to_a_later_fit_without_resume(tmp_path: Path) -> None:
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append("before"))
    try:
        run(tmp_path, lambda: strategy("one_device"), stop=4)
        tell = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda *_: signal.raise_signal(signal.SIGTERM)
        )
        model = dense()
        model.fit(*rows(), verbose=0, callbacks=[tell])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == ["before"]


def test_a_fit_in_another_thread_than_its_callback_was_made_in(tmp_path: Path) -> None:
    heard, before = [], signal.signal(signal.SIGTERM, lambda *_: heard.append("before"))
    try:
        with strategy("one_device").scope():
            model = dense()
        resume = tfaccel.checkpoint.resume(tmp_path)
        with ThreadPoolExecutor() as pool:
            fit = pool.submit(model.fit, *rows(), verbose=0, callbacks=[resume])
            assert fit.result().history["loss"]
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == ["before"]


def stopped(out: Path, create: Any, code: int, stops: keras.callbacks.Callback) -> None:
    """As `run`, up to where the process would end with an exit code."""
    out.mkdir(exist_ok=True)
    anew()
    with pytest.raises(SystemExit) as ended:
        train(str(out), create(), stops=stops)  # type: ignore[arg-type]
    assert ended.value.code == code


def test_a_notice_in_validation_is_not_kept_waiting_for_its_end(tmp_path: Path) -> None:
    create = lambda: strategy("mirrored", devices=2, check="off")  # noqa: E731
    run(tmp_path / "whole", create)
    batches = []

    def tell() -> None:
        batches.append("of validation")
        signal.raise_signal(signal.SIGTERM)

    stopped(tmp_path / "lost", create, PREEMPTED, Stops(6, "validation", tell))
    assert len(batches) == 1, "it has two"
    run(tmp_path / "lost", create)
    assert_same(tmp_path / "whole", tmp_path / "lost")


def test_a_notice_while_the_first_step_is_traced(tmp_path: Path) -> None:
    told = Stops(1, "trace", lambda: signal.raise_signal(signal.SIGTERM))
    stopped(tmp_path, lambda: strategy("one_device"), PREEMPTED, told)
    assert RestartCounter(str(tmp_path / "checkpoints")).starts == 0, "it does not count"


def test_a_notice_before_the_fit(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    tfaccel.checkpoint.resume(tmp_path)
    with pytest.raises(SystemExit) as ended:
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == PREEMPTED
    assert signal.getsignal(signal.SIGTERM) is before


def test_of_two_callbacks_the_one_in_the_fit_hears_of_a_notice(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    tfaccel.checkpoint.resume(tmp_path / "of another fit")
    told = Stops(4, "step", lambda: signal.raise_signal(signal.SIGTERM))
    stopped(tmp_path, lambda: strategy("one_device"), PREEMPTED, told)
    assert (tmp_path / "checkpoints" / "step-0000000004").is_dir()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_that_makes_no_new_step_is_not_started_for_ever(tmp_path: Path) -> None:
    class Fails(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            raise LostError

    create = lambda: strategy("one_device")  # noqa: E731
    run(tmp_path, create, stop=5)
    for _ in range(LIMIT):
        anew()
        with pytest.raises(LostError):
            train(str(tmp_path), create(), stops=Fails())  # type: ignore[arg-type]
    with mock.patch.object(logging, "error") as told:
        stopped(tmp_path, create, NO_PROGRESS, Fails())
    line = told.call_args.args[0] % told.call_args.args[1:]
    says = "no progress: the last 3 attempts ended before completing a step after batch 4; expected"
    assert f"{says} at least one step" in line
    (tmp_path / "checkpoints" / FILE).unlink()
    run(tmp_path, create)


@pytest.mark.parametrize(
    "settings", [{"every": 0}, {"every": "step"}, {"keep": 0}, {"directory": ""}]
)
def test_what_it_takes_is_checked(settings: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{next(iter(settings))} is .*; expected"):
        tfaccel.checkpoint.resume(**{"directory": tmp_path, **settings})
