"""What a step of `model.fit` costs under each strategy, side by side in one run.

    python benchmarks/fit_overhead.py [--replicas 2] [--steps 200] [--rounds 5]

Trains one MLP on one device, under TensorFlow's own MirroredStrategy and under tfaccel's, in turn
and for several rounds, and prints the median milliseconds per step and their ratios. On the logical
devices of one CPU replicas share its cores, so this shows what distribution costs and not what it
gains. The global batch is the same everywhere.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table

MODELS = {"tiny (16-16-4)": (16, (16,), 4), "784-512-512-10": (784, (512, 512), 10)}


def build(features: int, hidden: tuple[int, ...], classes: int) -> keras.Model:
    layers = [keras.layers.Dense(width, "relu") for width in hidden]
    model = keras.Sequential([keras.Input((features,)), *layers, keras.layers.Dense(classes)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(), loss, metrics=["accuracy"])
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=128)
    args = parser.parse_args()

    import tfaccel

    mirrored = tfaccel.strategy("mirrored", devices=args.replicas, device_type="cpu")
    plain = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(args.replicas)])
    scopes: dict[str, Any] = {
        "one device": contextlib.nullcontext,
        f"TensorFlow's Mirrored x{args.replicas}": plain.scope,
        f"tfaccel mirrored x{args.replicas}": mirrored.scope,
    }
    table = Table("model", "strategy", "ms/step (median)", "against one device")
    for name, shape in MODELS.items():
        rng = np.random.default_rng(0)
        x = rng.normal(size=(args.steps * args.batch, shape[0])).astype("float32")
        y = rng.integers(0, shape[2], len(x))
        models = {}
        for strategy, scope in scopes.items():
            with scope():
                models[strategy] = build(*shape)
            models[strategy].fit(x, y, batch_size=args.batch, verbose=0)  # compiles
        spent: dict[str, list[float]] = {strategy: [] for strategy in scopes}
        for _ in range(args.rounds):
            for strategy, model in models.items():
                start = time.perf_counter()
                model.fit(x, y, batch_size=args.batch, verbose=0)
                spent[strategy].append((time.perf_counter() - start) / args.steps * 1e3)
        alone = spent["one device"]
        for strategy, times in spent.items():
            ratio = statistics.median(t / a for t, a in zip(times, alone, strict=True))
            table.add_row(name, strategy, f"{statistics.median(times):.2f}", f"{ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
