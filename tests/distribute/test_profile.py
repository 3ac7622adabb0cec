"""The profile of some steps of `fit`, as TensorBoard reads it."""

from __future__ import annotations

import glob
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import pytest
import tensorflow as tf

from tests.support import environment
from tfaccel.distribute import profile, profiled_epochs
from tfaccel.distribute.profile import Profiler, ProfileRange

SCRIPT = """
import numpy as np
import tfaccel

strategy = tfaccel.strategy("multi_worker_mirrored", seed=5)
import keras

with strategy.scope():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1)])
    model.compile("sgd", "mse", steps_per_execution=STEPS)
x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
model.fit(x, x[:, :1], batch_size=8, epochs=3, verbose=0, validation_data=(x, x[:, :1]))
"""


def steps_of(file: str) -> tuple[list[int], dict[str, int]]:
    """The numbers of the steps in a profile, and how often each operation ran."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space = xplane_pb2.XSpace.FromString(Path(file).read_bytes())
    steps: list[int] = []
    operations: dict[str, int] = {}
    for plane in space.planes:
        for event in (event for line in plane.lines for event in line.events):
            name = plane.event_metadata[event.metadata_id].name
            operations[name] = operations.get(name, 0) + 1
            if name == "train":
                found = {plane.stat_metadata[s.metadata_id].name: s for s in event.stats}
                steps.append(found["step_num"].int64_value)
    return sorted(steps), operations


@pytest.mark.slow
@pytest.mark.parametrize("executions", [pytest.param(1, marks=pytest.mark.exhaustive), 2])
def test_the_same_steps_of_every_worker(executions: int, tmp_path: Path) -> None:
    """Four steps an epoch: the last two of the first one and the first two of the second."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.replace("STEPS", str(executions)))
    launch = [sys.executable, "-m", "tfaccel.cli", "launch", "--nproc=2", "--profile=3:6"]
    done = subprocess.run(
        [*launch, f"--log-dir={tmp_path}", str(script)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "plugins" / "profile" / "steps-3-6"
    assert f"tfaccel: the profile of steps 3 to 6 is in {folder}." in done.stderr
    assert sorted(os.listdir(folder)) == ["rank-0.xplane.pb", "rank-1.xplane.pb"]
    for file in folder.iterdir():
        steps, operations = steps_of(str(file))
        assert steps == [3, 4, 5, 6]
        products = sum(number for name, number in operations.items() if "MatMul" in name)
        assert products >= 4 * 5, "of each step: two forward, three backward"


EACH = """
import sys
import numpy as np
import tfaccel

for name, more in (("model_parallel", {"mesh": "batch=2"}), ("mirrored", {}), ("one_device", {})):
    devices = 1 if name == "one_device" else 2
    folder = f"{sys.argv[1]}/{name}"
    strategy = tfaccel.strategy(
        name, device_type="cpu", devices=devices, profile_dir=folder, check="off", **more
    )
    import keras

    with strategy.scope():
        model = keras.Sequential([keras.layers.Dense(3), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
    x = np.ones((32, 4), "float32")
    model.fit(x, x[:, :1], batch_size=8, epochs=2, verbose=0)
"""


@pytest.mark.slow
def test_other_strategies_profile_the_same_steps(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(EACH)
    launch = [sys.executable, "-m", "tfaccel.cli", "launch", "--nproc=1", "--profile=3:6"]
    done = subprocess.run(
        [*launch, f"--log-dir={tmp_path}", str(script), str(tmp_path)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("one_device", "mirrored", "model_parallel"):
        folder = tmp_path / name / "plugins" / "profile" / "steps-3-6"
        assert f"tfaccel: the profile of steps 3 to 6 is in {folder}." in done.stderr
        steps, operations = steps_of(str(folder / "rank-0.xplane.pb"))
        assert steps == [3, 4, 5, 6]
        products = sum(number for name, number in operations.items() if "MatMul" in name)
        assert products >= 4 * 5, "of each step: two forward, three backward"


class Recorder:
    """Stands for TensorFlow's profiler, and notes what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    def start(self, folder: str) -> None:
        made = Path(folder, "plugins", "profile", "now")
        made.mkdir(parents=True)
        (made / "host.xplane.pb").write_text("written")
        self.asked.append("start")

    def stop(self) -> None:
        self.asked.append("stop")

    def trace(self, name: str, step_num: int, _r: int) -> Recorder:
        self.asked.append(step_num)
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self.asked.append("|")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    for name, stands in (("start", made.start), ("stop", made.stop), ("Trace", made.trace)):
        monkeypatch.setattr(f"tensorflow.profiler.experimental.{name}", stands)
    return made


def test_what_keras_looks_at_is_no_step(recorder: Recorder, tmp_path: Path) -> None:
    profiler = Profiler()
    profiler.schedule(ProfileRange(1, 2, str(tmp_path)))
    profiler.step_begins()
    profiler.step_was_none()
    for _ in range(4):
        profiler.step_begins()
        profiler.step_ends()
    assert recorder.asked == ["start", 1, "|", 1, "|", 2, "|", "stop"]
    assert glob.glob(f"{tmp_path}/plugins/profile/*/*") == [
        f"{tmp_path}/plugins/profile/steps-1-2/rank-0.xplane.pb"
    ]


def unknown_length() -> tuple[tf.data.Dataset]:
    rows = tf.data.Dataset.from_tensor_slices((tf.ones([32, 4]), tf.ones([32, 1]))).batch(8)
    return (rows.filter(lambda x, y: True),)


@pytest.mark.parametrize(
    ("data", "executions", "asked"),
    [
        (lambda: (tf.ones([32, 4]), tf.ones([32, 1])), 1, [3, "|", 4, "|", 5, "|", 6, "|"]),
        # The first pass ends in a call that finds no batch, which is counted again.
        (unknown_length, 1, [3, "|", 4, "|", 5, "|", 5, "|", 6, "|"]),
        (lambda: (tf.ones([32, 4]), tf.ones([32, 1])), 2, [3, "|", 5, "|"]),
    ],
)
def test_steps_under_the_default_strategy(
    data: Callable[[], Any], executions: int, asked: list[Any], recorder: Recorder, tmp_path: Path
) -> None:
    """Those of `fit`: neither of a batch that is inspected, nor of validation or the data's end."""
    profiled_epochs.profile_fits_of(tf.distribute.get_strategy())
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse", steps_per_execution=executions)
    profile.profiler.schedule(ProfileRange(3, 6, str(tmp_path)))
    profile.atexit.unregister(profile.profiler._at_exit)
    model.fit(*data(), batch_size=8 if len(data()) > 1 else None, epochs=1, verbose=0)
    model.evaluate(*data(), verbose=0)
    model.fit(*data(), batch_size=8 if len(data()) > 1 else None, epochs=1, verbose=0)
    assert recorder.asked == ["start", *asked, "stop"]


def test_a_run_that_ends_early_has_what_there_was_and_says_so(
    recorder: Recorder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for first, says in (
        (2, f"the profile of steps 2 to 3 is in {tmp_path}/plugins/profile/steps-2-9"),
        (5, "no profile was written: the run has ended after step 3, before step 5"),
    ):
        profiler = Profiler()
        profiler.schedule(ProfileRange(first, 9, str(tmp_path)))
        for _ in range(3):
            profiler.step_ends()
            profiler.step_begins()
        profiler._at_exit()
        profile.atexit.unregister(profiler._at_exit)
        assert capsys.readouterr().err == f"tfaccel: {says}.\n"
    assert recorder.asked == ["start", 2, "|", 3, "|", "stop"]


def test_other_workers_say_nothing(
    recorder: Recorder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profiler = Profiler()
    profiler.schedule(ProfileRange(1, 1, str(tmp_path), rank=3))
    profiler.step_begins()
    profiler.step_ends()
    assert os.listdir(tmp_path / "plugins" / "profile" / "steps-1-1") == ["rank-3.xplane.pb"]
    assert capsys.readouterr().err == ""
