"""What `tfaccel.monitor` costs: the same `fit` without it and with it, side by side in one run.

    python benchmarks/monitor.py [--workers 1,2] [--rounds 9] [--steps 200] [--communication mpi]

Trains MLPs of several widths through `model.fit`, in turn without the monitor and with it, and
prints the median milliseconds per step and the median over rounds of the ratio of the two. An epoch
has one window, which is more than the one in ten seconds of the default. The epoch that compiles is
not timed. Aim: 1.01 at most.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from typing import Any

WIDTHS = {"tiny (64-64-10)": 64, "784-512-512-10": 512, "784-1024-1024-10": 1024}


def work(arguments: argparse.Namespace) -> None:
    """One worker: prints the milliseconds of each round, without and with the monitor."""
    cores = sorted(os.sched_getaffinity(0))
    rank = json.loads(os.environ.get("TF_CONFIG", "{}")).get("task", {}).get("index", 0)
    if arguments.pin:
        os.sched_setaffinity(0, {cores[rank % len(cores)]})

    import keras
    import numpy as np
    from epochs import StepTime

    import tfaccel

    several = "TF_CONFIG" in os.environ
    name = "multi_worker_mirrored" if several else arguments.strategy
    options = {"communication": arguments.communication} if several else {}
    strategy = tfaccel.strategy(name, device_type="cpu", seed=0, **options)
    rng = np.random.default_rng(0)
    for title, width in WIDTHS.items():
        features = 64 if width == 64 else 784
        x = rng.normal(size=(arguments.steps * arguments.batch, features)).astype("float32")
        y = rng.integers(0, 10, len(x))
        with strategy.scope():
            dense = keras.layers.Dense
            layers = [dense(width, "relu"), dense(width, "relu"), dense(10)]
            models = [keras.Sequential([keras.Input((features,)), *layers]) for _ in range(2)]
            models[1] = keras.models.clone_model(models[0])
            for model in models:
                loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
                model.compile("adam", loss)
        ms: list[list[float]] = [[], []]
        for number in range(arguments.rounds):
            for way in (0, 1) if number % 2 else (1, 0):
                timer = StepTime(arguments.steps)
                callbacks: list[Any] = [timer]
                if way:
                    with tempfile.TemporaryDirectory() as folder:
                        own = tfaccel.monitor(
                            strategy, folder, every=arguments.steps, verbose=False
                        )
                        fit(models[way], x, y, arguments, [*callbacks, own])
                else:
                    fit(models[way], x, y, arguments, callbacks)
                ms[way].append(statistics.median(timer.ms))
        print("ROUNDS", json.dumps([title, *ms]), flush=True)


def fit(model: Any, x: Any, y: Any, arguments: argparse.Namespace, callbacks: list[Any]) -> None:
    model.fit(x, y, batch_size=arguments.batch, epochs=4, verbose=0, callbacks=callbacks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--strategy", default="one_device", help="of one worker")
    parser.add_argument("--communication", default="auto")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--pin", action="store_true", help="give each worker a core of its own")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments)
        return

    from rich.console import Console
    from rich.table import Table

    table = Table("workers", "model", "ms/step without", "with", "ratio", "ratios from - to")
    for workers in map(int, arguments.workers.split(",")):
        launch = ["-m", "tfaccel.cli", "launch", f"--nproc={workers}", "--show=all"]
        launch = launch if workers > 1 else []
        given = [
            f"--{name}={getattr(arguments, name)}"
            for name in ("strategy", "communication", "rounds", "steps", "batch")
        ]
        given += ["--pin"] * arguments.pin
        done = subprocess.run(
            [sys.executable, *launch, __file__, "--work", *given],
            capture_output=True,
            text=True,
            check=False,
        )
        lines = [line for line in done.stdout.splitlines() if "ROUNDS" in line]
        if len(lines) != workers * len(WIDTHS):
            raise SystemExit(done.stdout[-2000:] + done.stderr[-4000:])
        for line in lines[::workers]:  # workers of one job take as long
            title, without, with_it = json.loads(line.split("ROUNDS ")[1])
            ratios = sorted(w / n for n, w in zip(without, with_it, strict=True))
            quarter = len(ratios) // 4
            table.add_row(
                *(str(workers), title),
                *(f"{statistics.median(each):.3f}" for each in (without, with_it)),
                f"{statistics.median(ratios):.3f}",
                f"{ratios[quarter]:.3f} - {ratios[-1 - quarter]:.3f}",
            )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
