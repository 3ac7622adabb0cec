"""A fit for `--nproc 2:3`: worker 2 does not come at first, and one of the other two is killed.

tfaccel launch --nproc 2:3 --max-restarts 1 -m tests.launch.elastic_fit FOLDER
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np

import tfaccel


class Counts(keras.callbacks.Callback):
    """Prints each step, and kills worker 1 after the seventh of two workers."""

    def __init__(self, workers: int, rank: int) -> None:
        super().__init__()
        self.workers, self.rank, self.steps = workers, rank, 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.steps += 1
        print(f"step {self.steps} of {self.workers} workers", flush=True)
        if (self.workers, self.rank, self.steps) == (2, 1, 7):
            os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path) -> None:
    config = json.loads(os.environ.get("TF_CONFIG", "{}"))
    workers = len(config.get("cluster", {}).get("worker", ["only"]))
    rank = int(config.get("task", {}).get("index", 0))
    if (workers, rank) == (3, 2) and not (folder / "was_absent").exists():
        (folder / "was_absent").touch()
        sys.exit(9)
    name = "multi_worker_mirrored" if workers > 1 else "one_device"
    strategy = tfaccel.strategy(name, device_type="cpu", devices=1)
    keras.utils.set_random_seed(1)
    x = np.random.default_rng(0).normal(size=(70, 6)).astype("float32")
    with strategy.scope():
        hidden = keras.layers.Dense(8, "tanh")
        model = keras.Sequential([keras.Input((6,)), hidden, keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    callbacks = [Counts(workers, rank), tfaccel.checkpoint.resume(folder / "run", every=2)]
    y = x[:, :1] * x[:, 1:2]
    fitted = model.fit(x, y, batch_size=7, epochs=2, verbose=0, callbacks=callbacks)
    if rank == 0:
        (folder / "losses.json").write_text(json.dumps(fitted.history["loss"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
