"""Real jobs that something slows down, each a `fit` with a monitor.

    python -m tests.monitoring.jobs FOLDER STRATEGY[,OPTION=VALUE] JOB...

Every worker prints a line of JSON for each job: the verdict, the windows, and what else it asks.
With `pin=0:1:1` worker 0 has the first core for itself, and workers 1 and 2 share the second.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfaccel

SLEEP_S = 0.2  # a step, where something is slow; longer than what a busy machine takes by itself
ROWS, BATCH, WIDTH = 48, 4, 16
STEPS = ROWS // BATCH


class Sleeps(keras.callbacks.Callback):
    """A slow callback.

    Args:
        seconds: after each batch.
        stops_at: the batch after which training is stopped.
    """

    def __init__(self, seconds: float = 0.0, stops_at: int | None = None) -> None:
        super().__init__()
        self.seconds, self.stops_at = seconds, stops_at

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        time.sleep(self.seconds)
        if batch == self.stops_at:
            self.model.stop_training = True


class Slow(keras.layers.Layer):
    """Gives what it is given, after a while.

    Args:
        seconds: the while.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def call(self, x: Any) -> Any:
        def wait(given: Any) -> Any:
            time.sleep(self.seconds)
            return given

        @tf.custom_gradient
        def waited(given: Any) -> Any:
            found = tf.numpy_function(wait, [given], given.dtype)
            return tf.ensure_shape(found, given.shape), lambda upstream: upstream

        return waited(x)


def slow_map(x: Any, y: Any) -> Any:
    def wait(given: Any) -> Any:
        time.sleep(SLEEP_S / BATCH)
        return given

    return tf.ensure_shape(tf.numpy_function(wait, [x], x.dtype), x.shape), y


class Job:
    """Makes models and data, and trains.

    Args:
        strategy: under which.
        folder: of the monitors.
    """

    def __init__(self, strategy: Any, folder: Path) -> None:
        self.strategy, self.folder = strategy, folder
        cluster = getattr(strategy, "cluster", None)
        self.rank = 0 if cluster is None else cluster.rank
        self.x = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype("float32")
        self.y = self.x[:, :2]

    def model(self, hidden: int = 16, seconds: float = 0.0, **compiled: Any) -> Any:
        with self.strategy.scope():
            model = keras.Sequential([keras.Input((WIDTH,)), keras.layers.Dense(hidden)])
            if seconds:
                model.add(Slow(seconds))
            model.add(keras.layers.Dense(hidden if hidden > 16 else 16, use_bias=False))
            model.add(keras.layers.Dense(2))
            model.compile("sgd", "mse", **compiled)
        return model

    def data(self, slow: bool = False) -> Any:
        rows = tf.data.Dataset.from_tensor_slices((self.x, self.y))
        return (rows.map(slow_map) if slow else rows).batch(BATCH, drop_remainder=True)

    def run(self, name: str) -> dict[str, Any]:
        """Trains as one job does."""
        folder = self.folder / name
        monitor = tfaccel.monitor(self.strategy, folder, every=5)
        more = getattr(self, name)(monitor)
        record = monitor.record
        return {
            "job": name,
            "rank": self.rank,
            "verdict": None if monitor.verdict is None else asdict(monitor.verdict),
            "windows": [asdict(w) for w in record.windows],
            "runs": [asdict(r) for r in record.runs],
            "causes": [asdict(c) for c in record.causes],
            **(more or {}),
        }

    # --- the jobs ----------------------------------------------------------------------------

    def plain(self, monitor: Any) -> dict[str, Any]:
        data = (self.x[:8], self.y[:8])
        options = {"epochs": 2, "verbose": 0, "validation_data": data, "batch_size": BATCH}
        model = self.model()
        model.fit(self.x, self.y, callbacks=[monitor], **options)
        scalars: dict[str, list[int]] = {}
        for path in (self.folder / "plain").glob("events.out.tfevents.*"):
            for event in tf.compat.v1.train.summary_iterator(str(path)):
                for value in event.summary.value:
                    scalars.setdefault(value.tag, []).append(event.step)
        return {"scalars": scalars, "is_put_back": not hasattr(model.train_function, "label")}

    def input(self, monitor: Any) -> None:
        self.model().fit(self.data(slow=True), verbose=0, callbacks=[monitor])

    def host(self, monitor: Any) -> None:
        callbacks = [Sleeps(), Sleeps(SLEEP_S), monitor]
        self.model().fit(self.data(), verbose=0, callbacks=callbacks)

    def straggler(self, monitor: Any) -> None:
        model = self.model(seconds=SLEEP_S * self.rank)
        model.fit(self.data(), verbose=0, callbacks=[monitor])

    def shared_core(self, monitor: Any) -> None:
        """As fast as the cores; with `pin`, some workers share one."""
        with self.strategy.scope():
            wide = [keras.layers.Dense(400, "relu") for _ in range(3)]
            model = keras.Sequential([keras.Input((WIDTH,)), *wide, keras.layers.Dense(2)])
            model.compile("sgd", "mse")
        x, y = np.tile(self.x, (1500, 1)), np.tile(self.y, (1500, 1))
        model.fit(x, y, batch_size=len(x) // 12, verbose=0, callbacks=[monitor])

    def communication(self, monitor: Any) -> None:
        model = self.model(hidden=3000)
        model.fit(self.data(), verbose=0, callbacks=[monitor])

    def stopped(self, monitor: Any) -> None:
        stops = Sleeps(stops_at=7)
        self.model().fit(self.data(), verbose=0, epochs=3, callbacks=[stops, monitor])

    def several(self, monitor: Any) -> None:
        model = self.model(steps_per_execution=4)
        model.fit(self.data(), verbose=0, callbacks=[monitor])

    def again(self, monitor: Any) -> dict[str, Any]:
        """A model that was trained without a monitor, then with it, and without again."""
        model = self.model()
        model.fit(self.data(), verbose=0)
        model.fit(self.data(), verbose=0, callbacks=[monitor])
        model.fit(self.data(), verbose=0)
        return {"is_put_back": not hasattr(model.train_function, "label")}

    def same(self, monitor: Any) -> dict[str, Any]:
        """The same training without a monitor and with it."""
        weights = []
        for callbacks in ([], [monitor]):
            keras.utils.set_random_seed(7)
            model = self.model()
            losses = model.fit(self.data(), epochs=2, verbose=0, callbacks=callbacks).history[
                "loss"
            ]
            weights.append([losses, [w.tolist() for w in model.get_weights()]])
        return {"equal": weights[0] == weights[1]}

    def resumed(self, monitor: Any) -> dict[str, Any]:
        """Beside the callback that saves, before and after it in the list."""
        for number, first in enumerate((True, False)):
            again = tfaccel.checkpoint.resume(self.folder / f"saved-{number}", every=5)
            callbacks = [again, monitor] if first else [monitor, again]
            history = self.model().fit(self.data(), verbose=0, callbacks=callbacks)
        return {"losses": history.history["loss"]}


def main(folder: str, chosen: str, *jobs: str) -> None:
    name, *options = chosen.split(",")
    given: dict[str, Any] = dict(option.split("=") for option in options)
    if pin := given.pop("pin", ""):  # before TensorFlow starts its threads
        rank = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[int(pin.split(":")[rank])]})
    if "devices" in given:
        given["devices"] = int(given["devices"])
    strategy = tfaccel.strategy(name, device_type="cpu", seed=1, check="off", **given)
    job = Job(strategy, Path(folder))
    for each in jobs:
        print("JOB", json.dumps(job.run(each)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
