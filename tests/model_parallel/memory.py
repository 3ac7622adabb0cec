"""Makes and trains a model of 256 MB of parameters, and prints how much memory that took.

Usage: python -m tests.model_parallel.memory STRATEGY [MESH LAYOUTS]
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys

import keras
import numpy as np

import tfaccel
from tfaccel.placement.report import report

WIDTH, LAYERS = 1024, 64
MB = 2**20


def resident() -> float:
    """MB of this process in memory, after what is free has been given back."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / MB


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    name, *mesh = sys.argv[1:]
    strategy = tfaccel.strategy(
        name, device_type="cpu", check="off", **dict(zip(("mesh", "layouts"), mesh, strict=False))
    )
    with strategy.scope():  # what TensorFlow takes for a first model
        small = keras.Sequential([keras.Input((WIDTH,)), keras.layers.Dense(WIDTH)])
        small.compile("adam", "mse")
    x = np.zeros((4, WIDTH), "float32")
    small.fit(x, x, verbose=0)
    before = resident()
    with strategy.scope():
        layers = [keras.layers.Dense(WIDTH, use_bias=False) for _ in range(LAYERS)]
        model = keras.Sequential([keras.Input((WIDTH,)), *layers])
        model.compile("adam", "mse")
    made, most = resident() - before, peak() - before
    with strategy.scope():
        model.optimizer.build(model.trainable_variables)
    slots = resident() - before
    model.fit(x, x, epochs=2, verbose=0)
    said = {"made": made, "most while made": most, "with slots": slots,
            "trained": resident() - before}  # fmt: skip
    totals = report(model).to_dict()["totals"]
    if tfaccel.is_chief(strategy):
        print("SAID", json.dumps({**said, "totals": totals, "pid": os.getpid()}), flush=True)


if __name__ == "__main__":
    main()
