"""A fit for `--nproc 2:3`: worker 2 does not come at first, and one of the other two is killed.

tfaccel launch --nproc 2:3 --max-restarts 1 -m tests.launch.elastic_fit FOLDER
"""

import json
import os
import signal
import sys
from pathlib import Path

CONFIG = json.loads(os.environ.get("TF_CONFIG", "{}"))
WORKERS = len(CONFIG.get("cluster", {}).get("worker", [0]))
RANK = CONFIG.get("task", {}).get("index", 0)
FOLDER = Path(sys.argv[1])

if WORKERS == 3 and RANK == 2 and not (FOLDER / "was_absent").exists():
    (FOLDER / "was_absent").touch()
    sys.exit(9)

import keras  # noqa: E402
import numpy as np  # noqa: E402

import tfaccel  # noqa: E402


class Counts(keras.callbacks.Callback):
    """Prints each step, and kills worker 1 after the seventh of two workers."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        self.steps += 1
        print(f"step {self.steps} of {WORKERS} workers", flush=True)
        if WORKERS == 2 and RANK == 1 and self.steps == 7:
            os.kill(os.getpid(), signal.SIGKILL)


name = "multi_worker_mirrored" if WORKERS > 1 else "one_device"
strategy = tfaccel.strategy(name, device_type="cpu", devices=1)
keras.utils.set_random_seed(1)
x = np.random.default_rng(0).normal(size=(70, 6)).astype("float32")
with strategy.scope():
    hidden = keras.layers.Dense(8, "tanh")
    model = keras.Sequential([keras.Input((6,)), hidden, keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
callbacks = [Counts(), tfaccel.checkpoint.resume(FOLDER / "run", every=2)]
fitted = model.fit(x, x[:, :1] * x[:, 1:2], batch_size=7, epochs=2, verbose=0, callbacks=callbacks)
if RANK == 0:
    (FOLDER / "losses.json").write_text(json.dumps(fitted.history["loss"]))
