"""What a monitor refuses at the start of a `fit`, and what it survives."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import tfaccel
from tests.monitoring.given import window
from tfaccel.errors import MonitorError
from tfaccel.monitoring import log_files
from tfaccel.monitoring.log_files import LogFiles
from tfaccel.monitoring.records import Record
from tfaccel.monitoring.run import Run


class Counts(keras.callbacks.Callback):
    """Counts steps, and puts a file in the place of a directory after the third."""

    def __init__(self, replaced: Path | None = None) -> None:
        super().__init__()
        self.replaced, self.steps = replaced, 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.steps += 1
        if self.steps == 3 and self.replaced is not None:
            shutil.rmtree(self.replaced)
            self.replaced.write_text("in the way")


def fit(counts: Counts, *directories: Path | None) -> None:
    strategy = tfaccel.strategy("one_device", device_type="cpu")
    with strategy.scope():
        model = keras.Sequential([keras.Input([3]), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
    monitors = [
        tfaccel.monitor(strategy, directory, every=1, verbose=False) for directory in directories
    ]
    x, y = np.ones((12, 3)), np.ones((12, 1))
    model.fit(x, y, batch_size=2, verbose=0, callbacks=[*monitors, counts])


@pytest.mark.parametrize("below", [".", "monitor"])
def test_a_directory_that_cannot_be_written_to_is_refused_before_a_step(
    tmp_path: Path, below: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    counts = Counts()
    with pytest.raises(MonitorError, match=r"cannot write to .*/file.* give another one"):
        fit(counts, tmp_path / "file" / below)
    assert counts.steps == 0


def test_a_worker_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    (tmp_path / "worker-0.jsonl").mkdir()
    with pytest.raises(MonitorError, match=r"\(Is a directory\)"):
        log_files.prepare(str(tmp_path), 0)


def test_training_goes_on_where_files_can_no_longer_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "monitor"
    counts = Counts(directory)
    fit(counts, directory)
    assert counts.steps == 6
    assert caplog.text.count("cannot be written") == 1
    assert "(Not a directory); no more are, and training goes on." in caplog.text


def test_a_full_disk_ends_the_scalars(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow as tf

    def full(*args: Any, **kwargs: Any) -> None:
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    run = Run(1000, 0)
    files = LogFiles(str(tmp_path), run, [run])
    monkeypatch.setattr(tf.summary, "scalar", full)
    for number in (1, 2):
        files.window([window(number=number)])
    assert caplog.text.count("(No space left on device)") == 1
    assert files.end([], Record()) == ""


def test_two_monitors_in_a_fit_are_refused(tmp_path: Path) -> None:
    counts = Counts()
    with pytest.raises(MonitorError, match=r"tfaccel\.monitor 2 times; expected it once"):
        fit(counts, None, tmp_path)
    assert counts.steps == 0
