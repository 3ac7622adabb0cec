"""What reading costs: images per second through `fit` by 1, 2 and more workers.

    python benchmarks/input.py [--workers 1,2] [--images 1024] [--batch 256] [--step 0.6]
        [--share 0.5] [--data-workers 1]

The images are JPEG files that are decoded, cropped and flipped in a `map`, and the step is about as
heavy as that (`--step`, in multiples of it). Each worker has a core of its own, or `--share` of one
(root, Linux control groups), so that more workers than cores compare with one. With
`--data-workers` each number of workers is run with as many data workers, on the cores that are
left, too. Three pipelines are read in turn, with the map

- before `batch`: each worker computes its own rows (`tfaccel/distribute/own_rows.py`);
- after `batch`: every worker computes all rows, and trains on its own;
- nowhere, as if reading cost nothing: the bound that the step and the network leave.

Printed are the images per second of all workers together, and against one worker: medians of
`--rounds`, in each of which every number of workers runs once. The epoch that compiles is not
timed, nor is the start. Jobs of one worker side by side show what the machine gives: cores of a
shared one are not always twice one core.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIZE, CROP = 256, 224
PIPELINES = ("before batch", "after batch", "none")
CONTROL_GROUPS = Path("/sys/fs/cgroup/cpu")
Rates = dict[str, float]


def write_images(folder: Path, count: int) -> None:
    import numpy as np
    import tensorflow as tf

    rng = np.random.default_rng(0)
    for number in range(count):
        small = rng.integers(0, 255, (SIZE // 8, SIZE // 8, 3))
        image = tf.cast(tf.image.resize(small, (SIZE, SIZE)), tf.uint8)
        tf.io.write_file(str(folder / f"{number:05}.jpg"), tf.io.encode_jpeg(image))


def take_a_share_of_a_core(rank: int, share: float, group: str) -> None:
    """Pins this process to a core, of which it gets `share`, in periods of 10 ms."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    if share < 1:
        directory = CONTROL_GROUPS / f"{group}-{rank}"
        directory.mkdir(exist_ok=True)
        (directory / "cpu.cfs_period_us").write_text("10000")
        (directory / "cpu.cfs_quota_us").write_text(str(round(10_000 * share)))
        (directory / "cgroup.procs").write_text(str(os.getpid()))


def work(arguments: argparse.Namespace) -> None:
    """One worker: trains on each pipeline, and prints its seconds per epoch."""
    rank = json.loads(os.environ.get("TF_CONFIG", "{}")).get("task", {}).get("index", 0)
    take_a_share_of_a_core(rank + arguments.core, arguments.share, Path(arguments.folder).name)
    import keras
    import tensorflow as tf
    from epochs import StepTime

    import tfaccel

    several = arguments.of > 1
    name = "multi_worker_mirrored" if several else "mirrored"
    options = {} if several else {"devices": 1}
    strategy = tfaccel.strategy(name, device_type="cpu", check="off", **options)
    names = 2 * sorted(map(str, Path(arguments.folder).glob("*.jpg")))

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
    steps = -(-len(names) // arguments.batch)
    seconds = {}
    for pipeline in PIPELINES:
        timer = StepTime(steps)
        model.fit(dataset(pipeline), epochs=1 + arguments.epochs, verbose=0, callbacks=[timer])
        seconds[pipeline] = statistics.median(timer.ms) * steps / 1e3
    print("SECONDS", json.dumps(seconds), flush=True)


def job(arguments: argparse.Namespace, folder: str, workers: int, data_workers: int) -> Rates:
    """Images per second of all workers of one job together, for each pipeline."""
    launch = ["-m", "tfaccel.cli", "launch", f"--nproc={workers}", "--show=all"]
    launch += [f"--data-workers={data_workers}"] if data_workers else []
    started = start([*launch, __file__, f"--of={workers}"], arguments, folder)
    slowest = [max(each) for each in zip(*seconds(started, workers), strict=True)]
    return {p: 2 * arguments.images / s for p, s in zip(PIPELINES, slowest, strict=True)}


def side_by_side(arguments: argparse.Namespace, folder: str, jobs: int) -> Rates:
    """Of jobs of one worker that know nothing of each other, together: what the machine gives."""
    started = [start([__file__, f"--core={n}"], arguments, folder) for n in range(jobs)]
    each = [seconds(one, 1)[0] for one in started]
    return {p: sum(2 * arguments.images / one[n] for one in each) for n, p in enumerate(PIPELINES)}


def start(command: list[str], arguments: argparse.Namespace, folder: str) -> subprocess.Popen[str]:
    given = [f"--{n}={getattr(arguments, n)}" for n in ("batch", "step", "epochs", "share")]
    return subprocess.Popen(
        [sys.executable, *command, f"--folder={folder}", *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def seconds(started: subprocess.Popen[str], workers: int) -> list[list[float]]:
    """Of an epoch, for each worker and pipeline."""
    output = started.communicate()[0]
    lines = [line for line in output.splitlines() if "SECONDS" in line]
    if len(lines) != workers:
        raise SystemExit(output[-4000:])
    return [list(json.loads(line.split("SECONDS ")[1]).values()) for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--step", type=float, default=0.6)
    parser.add_argument("--epochs", type=int, default=3, help="that are timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--data-workers", type=int, default=0)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--of", type=int, default=1, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder:
        work(arguments)
        return

    from rich.console import Console
    from rich.table import Table

    kinds: dict[str, Callable[..., Rates]] = {}
    for workers in map(int, arguments.workers.split(",")):
        for count in sorted({0, arguments.data_workers}):
            beside = f", {count} data workers" if count else ""
            kinds[f"{workers}{beside}"] = functools.partial(
                job, arguments, workers=workers, data_workers=count
            )
        if workers > 1:
            kinds[f"{workers} jobs of 1"] = functools.partial(side_by_side, arguments, jobs=workers)
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), arguments.images)
        for _ in range(arguments.rounds):
            rounds.append([measure(folder=folder) for measure in kinds.values()])
        for group in CONTROL_GROUPS.glob(f"{Path(folder).name}-*"):
            group.rmdir()
    columns = [f"map {p}: images/s" for p in PIPELINES]
    table = Table("workers", *columns, *PIPELINES)
    for number, kind in enumerate(kinds):
        rates, ratios = [], []
        for pipeline in PIPELINES:
            rates.append(statistics.median(each[number][pipeline] for each in rounds))
            ratio = sorted(each[number][pipeline] / each[0][pipeline] for each in rounds)
            ratios.append(f"{statistics.median(ratio):.2f}x ({ratio[0]:.2f}-{ratio[-1]:.2f})")
        table.add_row(kind, *(f"{rate:,.0f}" for rate in rates), *ratios)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
