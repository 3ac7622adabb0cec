"""A notice that comes where no step ends: the run leaves in time with what it has saved."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from pathlib import Path

import pytest

from tests.support import run_child
from tfaccel.exit_codes import PREEMPTED

_BATCHES = 20  # of which the first-step check takes some


def main() -> None:
    """Trains on more batches than there are, and the last worker is told to stop meanwhile."""
    told = Path(sys.argv[1], "told")
    if told.exists():  # the launcher has started it again
        return
    import keras
    import numpy as np
    import tensorflow as tf

    import tfaccel
    from tfaccel.checkpoint import preemption

    preemption._NEXT_STEP_S = 2.0
    strategy = tfaccel.strategy(sys.argv[2], device_type="cpu")
    queue = tf.queue.FIFOQueue(_BATCHES, tf.float32, [()])
    queue.enqueue_many([np.zeros(_BATCHES, np.float32)])

    class Waits(keras.layers.Layer):
        def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
            return x + queue.dequeue() if training else x

    class Tells(keras.callbacks.Callback):
        timer = None

        def on_train_batch_end(self, batch: int, logs: object = None) -> None:
            told.touch()
            if self.timer is not None:
                self.timer.cancel()
            self.timer = threading.Timer(3.0, os.kill, (os.getpid(), signal.SIGTERM))
            self.timer.start()

    cluster = getattr(strategy, "cluster", None)
    is_last = cluster is None or cluster.rank == cluster.size - 1
    with strategy.scope():
        model = keras.Sequential([keras.Input((2,)), Waits(), keras.layers.Dense(1)])
        model.compile("adam", "mse")
    callbacks = [tfaccel.checkpoint.resume(sys.argv[1], every=2)] + [Tells()] * is_last
    model.fit(np.ones((128, 2)), np.ones((128, 1)), batch_size=4, verbose=0, callbacks=callbacks)


@pytest.mark.parametrize(
    ("strategy", "workers"),
    [
        ("one_device", 1),
        pytest.param("multi_worker_mirrored", 2, marks=pytest.mark.exhaustive),
    ],
)
def test_a_step_that_does_not_end_is_left(strategy: str, workers: int, tmp_path: Path) -> None:
    command = ["-m", "tests.checkpoint.test_preemption", str(tmp_path), strategy]
    said = run_child(command, workers=workers, codes=(PREEMPTED if workers == 1 else 0,))
    assert re.search(r"SIGTERM: no step has ended for \d+ s, so nothing more is saved", said)
    assert any(path.is_dir() for path in tmp_path.iterdir()), "a checkpoint"


@pytest.mark.child(devices=1)
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("first", [0, 1])
def test_a_notice_between_two_fits(first: int, fails: bool, tmp_path: Path) -> None:
    import keras
    import numpy as np

    import tfaccel

    class FitError(Exception):
        pass

    def fit(resume: keras.callbacks.Callback, *others: keras.callbacks.Callback) -> None:
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile("adam", "mse")
        callbacks = [resume, *others]
        model.fit(np.ones((4, 2)), np.ones((4, 1)), batch_size=2, verbose=0, callbacks=callbacks)

    def fail(*_: object, **__: object) -> None:
        raise FitError

    heard: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append("before"))
    try:
        resumes = [tfaccel.checkpoint.resume(tmp_path / name) for name in "ab"]
        if fails:
            with pytest.raises(FitError):
                fit(resumes.pop(first), keras.callbacks.LambdaCallback(on_train_batch_end=fail))
        else:
            fit(resumes.pop(first))
        with pytest.raises(SystemExit) as ended:
            signal.raise_signal(signal.SIGTERM)
        assert ended.value.code == PREEMPTED
        assert not heard
        signal.raise_signal(signal.SIGTERM)
        assert heard == ["before"]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.child(devices=1)
def test_after_the_last_of_two_fits_a_notice_means_what_it_did(tmp_path: Path) -> None:
    import keras
    import numpy as np

    import tfaccel

    heard: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append("before"))
    try:
        resumes = [tfaccel.checkpoint.resume(tmp_path / name) for name in "abc"]
        del resumes[2]  # no fit can use it
        for resume in resumes:
            model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
            model.compile("adam", "mse")
            model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0, callbacks=[resume])
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == ["before"]


if __name__ == "__main__":
    main()
