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


if __name__ == "__main__":
    main()
