"""What saving a run costs it: how long it stops, how much slower it is, and what memory it takes.

    python benchmarks/checkpoint.py [--state-mb 1000] [--every-s 24] [--saves 3] [--rounds 3]

Trains one MLP through `model.fit` without saves, and with those of `tfaccel.checkpoint.resume`,
synchronous and asynchronous. Every column is a process of its own, one after the other, for several
rounds. All numbers compare parts of one process:

- A pause is the time from a batch after which was saved to the next one, less that of a step. The
  copies of variables that the step makes because they are being written are in it.
- What a save costs in all is the first half of the steps up to the next save less the second half,
  in which nothing is written any more. What the column without saves has there is noise.
- Memory is the peak of the `fit` with saves less that of one without, just before.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tfaccel import onednn

COLUMNS = ("no saves", "synchronous", "asynchronous")
WARM = 3  # steps, which compile


def main() -> None:
    asked = _arguments()
    if asked.column is not None:
        print(json.dumps(measure(asked)))
        return
    every = asked.every or max(8, round(asked.every_s / _run(COLUMNS[0], 8, 0)["step_s"]))
    runs: dict[str, list[dict[str, Any]]] = {column: [] for column in COLUMNS}
    for round_ in range(asked.rounds):
        for column in COLUMNS:
            runs[column].append(_run(column, every, asked.saves))
            said = f"round {round_ + 1}: {column}: {json.dumps(runs[column][-1])}"
            print(said, file=sys.stderr, flush=True)
    rows = [_row(column, runs) for column in COLUMNS]
    if asked.json:
        print(json.dumps({"asked": vars(asked), "every": every, "rows": rows}, indent=1))
    else:
        _print(rows, runs[COLUMNS[0]][0], every)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state-mb", type=int, default=1000, help="weights and slots")
    parser.add_argument("--width", type=int, default=2048, help="of a layer")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--every-s", type=float, default=24.0, help="from one save to the next")
    parser.add_argument("--every", type=int, help="the same in steps")
    parser.add_argument("--saves", type=int, default=3, help="measured, of each run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", help="on the disk that is written to")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--column", choices=COLUMNS, help=argparse.SUPPRESS)
    return parser.parse_args()


def _run(column: str, every: int, saves: int) -> dict[str, Any]:
    """Measures one column in a separate process."""
    env = dict(os.environ)
    onednn.prefer(env)
    more = ["--column", column, "--every", str(every), "--saves", str(saves)]
    command = [sys.executable, __file__, *sys.argv[1:], *more]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True, text=True)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


# --- In the process of a column -------------------------------------------------------------


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    import keras
    import numpy as np
    import tensorflow as tf

    import tfaccel

    with tfaccel.strategy("one_device", device_type="cpu").scope():
        layers = max(1, round(asked.state_mb * 1e6 / (3 * 4 * asked.width**2)))
        model = keras.Sequential([keras.Input((asked.width,))])
        for _ in range(layers):
            model.add(keras.layers.Dense(asked.width, "tanh"))
        model.compile(keras.optimizers.Adam(1e-4), "mse")
    x = np.random.default_rng(0).normal(size=(asked.batch, asked.width)).astype("float32")
    steps = asked.every * (asked.saves + 1)
    data = tf.data.Dataset.from_tensors((x, x)).repeat(WARM + steps)
    model.fit(data.take(WARM), verbose=0)
    _peak_and_reset()
    model.fit(data.take(asked.every), verbose=0)
    before = _peak_and_reset()

    class Watch(keras.callbacks.Callback):
        """Notes the time after each step, before it is saved."""

        def __init__(self) -> None:
            super().__init__()
            self.times: list[float] = []

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.times.append(time.perf_counter())

    watch = Watch()
    with tempfile.TemporaryDirectory(dir=asked.directory) as directory:
        callbacks: list[Any] = [watch]
        if asked.column != "no saves":
            asynchronous = asked.column == "asynchronous"
            saving = tfaccel.checkpoint.resume(directory, asked.every, asynchronous=asynchronous)
            callbacks.append(saving)
        model.fit(data.take(steps), verbose=0, callbacks=callbacks)
        saved = len(list(Path(directory).glob("step-*")))
    times = np.diff(watch.times)
    periods = [
        times[n * asked.every - 1 : (n + 1) * asked.every - 1] for n in range(1, asked.saves + 1)
    ]
    half = asked.every // 2
    variables = [*model.variables, *model.optimizer.variables]
    sizes = [4 * int(np.prod(v.shape)) for v in variables]  # float32
    return {
        "step_s": statistics.median(times.tolist()),
        "pauses_s": [float(p[0] - np.median(p[half:])) for p in periods],
        "costs_s": [float(p[:half].sum() - p[-half:].sum()) for p in periods],
        "memory_mb": (_peak_and_reset() - before) / 1e6,
        "state_mb": sum(sizes) / 1e6,
        "largest_mb": max(sizes) / 1e6,
        "saved": saved,
    }


def _peak_and_reset() -> int:
    """The most memory that this process has held since the last call, in bytes (Linux)."""
    (line,) = (s for s in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in s)
    Path("/proc/self/clear_refs").write_text("5")
    return int(line.split()[1]) * 1024


# --- The table ------------------------------------------------------------------------------


def _row(column: str, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    def over(key: str, of: str = column) -> list[float]:
        return [number for run in runs[of] for number in run[key]]

    pause, cost = statistics.median(over("pauses_s")), statistics.median(over("costs_s"))
    ratios = [
        statistics.median(ours["pauses_s"]) / statistics.median(synchronous["pauses_s"])
        for ours, synchronous in zip(runs[column], runs["synchronous"], strict=True)
    ]
    return {
        "column": column,
        "step_s": statistics.median(run["step_s"] for run in runs[column]),
        "pause_s": pause,
        "pauses_s": sorted(over("pauses_s")),
        "to_synchronous": statistics.median(ratios),
        "cost_s": cost,
        "slower_at_one_a_minute": cost / 60,
        "memory_mb": max(run["memory_mb"] for run in runs[column]),
    }


def _print(rows: list[dict[str, Any]], one: dict[str, Any], every: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{one['state_mb']:.0f} MB of state, of which the largest variable has "
        f"{one['largest_mb']:.0f}; a save every {every} steps"
    )
    table.add_column("column")
    for heading in (
        "s a step", "pause s, median", "(min - max)", "to synchronous", "a save costs s",
        "slower at one per minute", "MB more",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    for row in rows:
        saves = row["column"] != "no saves"
        table.add_row(
            row["column"],
            f"{row['step_s']:.2f}",
            f"{row['pause_s']:.2f}",
            f"{row['pauses_s'][0]:.2f} - {row['pauses_s'][-1]:.2f}",
            f"{row['to_synchronous']:.2f}" if saves else "-",
            f"{row['cost_s']:.2f}",
            f"{row['slower_at_one_a_minute']:.1%}",
            f"{row['memory_mb']:.0f}",
        )
    console = Console()
    console = console if console.is_terminal else Console(width=120)
    console.print(table)


if __name__ == "__main__":
    main()
