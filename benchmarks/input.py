"""What reading costs: images per second through `fit` by 1, 2 and more workers.

    python benchmarks/input.py [--workers 1,2] [--images 1024] [--batch 64] [--step 1.0]

The images are JPEG files that are decoded, cropped and flipped in a `map`, and the step is about as
heavy as that (`--step`, in multiples of it). Each worker has a core of its own. Three pipelines are
read in turn, with the map

- before `batch`: each worker computes its own rows (`tfaccel/distribute/own_rows.py`);
- after `batch`: every worker computes all rows, and trains on its own;
- nowhere, as if reading cost nothing: the bound that the step and the network leave.

Printed are the images per second of all workers together, and against one worker.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SIZE, CROP = 256, 224
PIPELINES = ("before batch", "after batch", "none")


def write_images(folder: Path, count: int) -> None:
    import numpy as np
    import tensorflow as tf

    rng = np.random.default_rng(0)
    for number in range(count):
        small = rng.integers(0, 255, (SIZE // 8, SIZE // 8, 3))
        image = tf.cast(tf.image.resize(small, (SIZE, SIZE)), tf.uint8)
        tf.io.write_file(str(folder / f"{number:05}.jpg"), tf.io.encode_jpeg(image))


def work(arguments: argparse.Namespace) -> None:
    """One worker: trains on each pipeline, and prints its seconds per epoch."""
    cores = sorted(os.sched_getaffinity(0))
    rank = json.loads(os.environ.get("TF_CONFIG", "{}")).get("task", {}).get("index", 0)
    os.sched_setaffinity(0, {cores[rank % len(cores)]})

    import keras
    import tensorflow as tf

    import tfaccel

    name = "multi_worker_mirrored" if "TF_CONFIG" in os.environ else "one_device"
    strategy = tfaccel.strategy(name, device_type="cpu", check="off")
    names = sorted(map(str, Path(arguments.folder).glob("*.jpg")))

    def decoded(file: Any, number: Any) -> Any:
        image = tf.io.decode_jpeg(tf.io.read_file(file), channels=3)
        seed = tf.stack([number, number])
        image = tf.image.stateless_random_crop(image, (CROP, CROP, 3), seed)
        image = tf.image.stateless_random_flip_left_right(image, seed)
        return tf.image.resize(tf.cast(image, tf.float32) / 255, (64, 64)), number % 10

    def dataset(pipeline: str) -> Any:
        numbers = tf.range(len(names), dtype=tf.int64)
        files = tf.data.Dataset.from_tensor_slices((names, numbers)).shuffle(len(names), seed=0)
        if pipeline == "none":
            rows = files.map(lambda _, number: number).batch(arguments.batch)
            return rows.map(lambda n: (tf.zeros((tf.size(n), 64, 64, 3)), n % 10))
        if pipeline == "before batch":
            return files.map(decoded, tf.data.AUTOTUNE).batch(arguments.batch)
        whole = files.map(decoded, tf.data.AUTOTUNE).batch(arguments.batch)
        return whole.map(lambda *batch: batch)

    filters = round(64 * arguments.step)
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((64, 64, 3)),
                keras.layers.Conv2D(32, 3, 2, activation="relu"),
                keras.layers.Conv2D(filters, 3, 2, activation="relu"),
                keras.layers.Conv2D(filters, 3, 2, activation="relu"),
                keras.layers.GlobalAveragePooling2D(),
                keras.layers.Dense(10),
            ]
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("sgd", loss)
    seconds = {pipeline: float("inf") for pipeline in PIPELINES}
    for pipeline in PIPELINES:
        model.fit(dataset(pipeline).take(2), verbose=0)
    for _ in range(arguments.rounds):
        for pipeline in PIPELINES:
            start = time.perf_counter()
            model.fit(dataset(pipeline), verbose=0)
            seconds[pipeline] = min(seconds[pipeline], time.perf_counter() - start)
    print("SECONDS", json.dumps(seconds), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--step", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder:
        work(arguments)
        return

    from rich.console import Console
    from rich.table import Table

    table = Table("workers", *(f"map {p}: images/s" for p in PIPELINES), *PIPELINES[:2])
    first: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), arguments.images)
        for workers in map(int, arguments.workers.split(",")):
            launch = ["-m", "tfaccel.cli", "launch", f"--nproc={workers}", "--show=all"]
            launch = launch if workers > 1 else []
            given = [f"--{n}={getattr(arguments, n)}" for n in ("batch", "step", "rounds")]
            done = subprocess.run(
                [sys.executable, *launch, __file__, f"--folder={folder}", *given],
                capture_output=True,
                text=True,
                check=False,
            )
            lines = [line for line in done.stdout.splitlines() if "SECONDS" in line]
            if len(lines) != workers:
                raise SystemExit(done.stdout[-2000:] + done.stderr[-4000:])
            each = [json.loads(line.split("SECONDS ")[1]) for line in lines]
            rate = {p: arguments.images / max(one[p] for one in each) for p in PIPELINES}
            first = first or rate
            scaled = [f"{rate[p] / first[p]:.2f}x" for p in PIPELINES[:2]]
            table.add_row(str(workers), *(f"{rate[p]:,.0f}" for p in PIPELINES), *scaled)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
