"""A job in which one worker stops going on: python -m tests.cluster.faulty_run FAULT [--rank R].

Two workers train on batches of a generator. After some batches the worker does what FAULT says:
nothing that TensorFlow, MPI or a launcher would hear of.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfaccel

BATCHES = 8
MESH = {"devices": 1, "mesh": "batch=2"}


class Callback(keras.callbacks.Callback):
    """Does what is asked of it after the sixth batch, or at the end of the first epoch."""

    def __init__(
        self, in_batch: Any = None, at_begin: Any = None, at_end: Any = None, in_test: Any = None
    ) -> None:
        super().__init__()
        self.at_begin = at_begin
        self.in_batch, self.at_end, self.in_test = in_batch, at_end, in_test

    def on_train_begin(self, logs: Any = None) -> None:
        if self.at_begin:
            self.at_begin()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == 5 and self.in_batch:
            print(f"fault at {time.time():.1f}", flush=True)
            self.in_batch()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if epoch == 0 and self.at_end:
            self.at_end()

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.in_test:
            self.in_test()


class SlowToTrace(keras.layers.Layer):
    """A layer whose tracing takes long."""

    def call(self, x: Any) -> Any:
        if not tf.executing_eagerly():
            time.sleep(4)
        return x


class Hangs(keras.layers.Layer):
    """A layer with which the first step of `fit` is never made, or never ends."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault, self.fits = fault, False
        with tf.device("/CPU:0"):
            self.empty = tf.queue.FIFOQueue(1, tf.float32, [()])

    def call(self, x: Any) -> Any:
        if not self.fits or not self.fault:
            return x
        print(f"fault at {time.time():.1f}", flush=True)
        if self.fault == "trace":
            threading.Event().wait()
        if self.fault == "stopped trace":
            os.kill(os.getpid(), signal.SIGSTOP)
        return x + self.empty.dequeue()


def batches(stuck: bool, pause_s: float) -> Iterator[Any]:
    rng = np.random.default_rng(0)
    for number in range(3 * BATCHES):
        time.sleep(pause_s)
        if stuck and number == 13:
            print(f"fault at {time.time():.1f}", flush=True)
            threading.Event().wait()
        x = rng.normal(size=(8, 4)).astype("float32")
        yield x, x[:, :1]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("fault")
    parser.add_argument("--rank", type=int, default=1, help="of the worker at fault")
    parser.add_argument("--mesh", action="store_true")
    options = parser.parse_args()
    name = "model_parallel" if options.mesh else "multi_worker_mirrored"
    given = {"check": "off"} if options.fault == "first step" else {}  # which takes one before
    given |= MESH if options.mesh else {}
    strategy = tfaccel.strategy(name, device_type="cpu", seed=1, **given)
    mine = strategy.cluster.rank == options.rank
    fault = options.fault if mine else ""

    # What a worker does is known to within a second.
    pause_s = 0.4 if options.fault in ("kill", "stop") else 0.0

    hangs = None
    with strategy.scope():
        layers = [keras.layers.Dense(3), keras.layers.Dense(1)]
        if options.fault == "slow compile":
            layers.insert(1, SlowToTrace())
        if options.fault in ("trace", "stopped trace", "first step"):
            layers.insert(1, hangs := Hangs(fault))
        model = keras.Sequential([keras.Input((4,)), *layers])
        model.compile("sgd", "mse")
    # What is asked of one worker alone.
    in_batch = {
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    }
    callback = Callback(
        in_batch.get(fault),
        at_begin=(lambda: setattr(hangs, "fits", True)) if hangs else None,
        at_end=(lambda: time.sleep(20)) if fault == "slow callback" else None,
        in_test=(lambda: time.sleep(0.7)) if options.fault == "slow validation" else None,
    )
    shapes = tuple(tf.TensorSpec((8, n), tf.float32) for n in (4, 1))
    data = tf.data.Dataset.from_generator(
        lambda: batches(fault == "generator", pause_s), output_signature=shapes
    )
    x = np.zeros((64, 4), "float32")
    model.fit(
        data.repeat(),
        epochs=3,
        steps_per_epoch=BATCHES,
        validation_data=(x, x[:, :1]) if "slow" in options.fault else None,
        validation_batch_size=8,
        verbose=0,
        callbacks=[callback],
    )
    print("trained to the end", flush=True)


if __name__ == "__main__":
    main()
