"""A run that is stopped, or is not: python -m tests.checkpoint.run OUT --data KIND [--kill BATCH].

Trains with what has a state: dropout, momentum, batch normalization, a metric, callbacks; leaves
weights, slots, history and what the model has seen of each batch in OUT.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfaccel
from tests.checkpoint.data import DATA, rows
from tests.checkpoint.models import MODELS
from tfaccel.checkpoint import manifest, sharded_files

EPOCHS = 3
_UNTIL_IN_STEP_S = 5.0
VALIDATED = ("dense", "tf.random", "digits", "transformer", "averaged", "averaged by epoch")
PHASES = ("step", "validation", "part", "save", "trace", "compile")


class Stops(keras.callbacks.Callback):
    """Stops the run as `stop` does, in one of its phases, after so many batches."""

    def __init__(self, batches: int, phase: str, stop: Any) -> None:
        super().__init__()
        self.batches, self.phase, self.stop, self.done = batches, phase, stop, 0

    def on_train_begin(self, logs: Any = None) -> None:
        if self.phase == "trace":
            _stop_in_a_trace(self)
        if self.phase == "compile":
            _stop_in_a_step_that_does_not_end(self)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.done += 1
        if self.phase == "step" and self.done == self.batches:
            self.stop()

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.phase == "validation" and self.done >= self.batches:
            self.stop()


class Seen(keras.callbacks.Callback):
    """Writes what the model has seen after each batch: its metric adds the numbers of the rows."""

    pace_s = 0.0
    """How long each batch takes at least."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        time.sleep(self.pace_s)
        with self.path.open("a") as file:
            file.write(json.dumps([int(self.model.optimizer.iterations), logs]) + "\n")


class Draws(keras.callbacks.Callback):
    """Holds what only variables of its own keep, and adds it to the history."""

    def __init__(self) -> None:
        super().__init__()
        self.seed, self.drawn = keras.random.SeedGenerator(9), keras.metrics.Sum()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.drawn.update_state(keras.random.uniform((), seed=self.seed))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs["drawn"] = float(self.drawn.result())


def train(
    out: str,
    strategy: Any,
    data: str = "arrays",
    model: str = "dense",
    every: int | str = 3,
    epochs: int = EPOCHS,
    stops: Stops | None = None,
    asynchronous: bool = True,
    keep: int = 2,
    directory: str = "",
) -> None:
    """Trains, from where an earlier call in the same folder has stopped."""
    cluster = getattr(strategy, "cluster", None)
    rank = cluster.rank if cluster else 0
    resume = tfaccel.checkpoint.resume(
        directory or f"{out}/checkpoints", every, keep=keep, asynchronous=asynchronous
    )
    given = DATA[data]()
    with strategy.scope():
        trained = MODELS[model]()
    if trained.built and strategy is tf.distribute.get_strategy():
        # As other strategies do; else one device would trace the step a second time.
        trained.optimizer.build(trained.trainable_variables)
    history = trained.fit(
        **given,
        epochs=epochs,
        validation_data=rows(12) if model in VALIDATED else None,
        verbose=0,
        callbacks=[
            Seen(Path(out, f"seen-{rank}.jsonl")),
            keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.9 * rate),
            keras.callbacks.ReduceLROnPlateau("loss", 0.5, patience=1, min_delta=10.0),
            keras.callbacks.EarlyStopping("loss", patience=9, restore_best_weights=True),
            *_averages(model),
            Draws(),
            resume,
            *([stops] if stops else []),
        ],
    )
    variables = [*trained.variables, *trained.optimizer.variables]
    variables += getattr(trained, "second", trained.optimizer).variables
    held = [np.asarray(keras.ops.convert_to_numpy(v)) for v in variables]
    np.savez(f"{out}/end-{rank}.npz", *held)
    Path(out, f"history-{rank}.json").write_text(json.dumps(history.history))


def _averages(model: str) -> list[keras.callbacks.Callback]:
    if not model.startswith("averaged"):
        return []
    return [keras.callbacks.SwapEMAWeights(swap_on_epoch=model.endswith("epoch"))]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--strategy", default="one_device")
    parser.add_argument("--options", type=json.loads, default={}, help="of the strategy, as JSON")
    parser.add_argument("--data", default="arrays")
    parser.add_argument("--model", default="dense")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--kill", type=int, help="after so many batches")
    parser.add_argument("--kill-in", default="step", choices=PHASES)
    parser.add_argument("--signal", default="SIGKILL")
    parser.add_argument("--rank", type=int, default=0, help="of the process that is killed")
    parser.add_argument("--once", action="store_true", help="and not when it is started again")
    parser.add_argument("--synchronous", action="store_true", help="train on after each write")
    options = parser.parse_args()

    def kill() -> None:
        Path(options.out, "struck").touch()
        os.kill(os.getpid(), getattr(signal, options.signal))

    strategy = tfaccel.strategy(options.strategy, device_type="cpu", **options.options)
    if options.seed is not None:
        keras.utils.set_random_seed(options.seed)
    rank = strategy.cluster.rank if getattr(strategy, "cluster", None) else 0
    killed = Path(options.out, "killed")
    stops = None
    if options.kill and rank == options.rank and not (options.once and killed.exists()):
        killed.touch()
        stops = Stops(options.kill, options.kill_in, kill)
        if options.kill_in in ("part", "save"):
            _kill_in_a_write(stops, options.kill_in)
    train(
        options.out,
        strategy,
        options.data,
        options.model,
        stops=stops,
        asynchronous=not options.synchronous,
    )


def _stop_in_a_trace(stops: Stops) -> None:
    """Stops the run as its step is traced, once."""
    plain = keras.layers.Dropout.call

    @functools.wraps(plain)
    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        keras.layers.Dropout.call = plain
        stops.stop()
        return plain(layer, *args, **kwargs)

    keras.layers.Dropout.call = call


def _stop_in_a_step_that_does_not_end(stops: Stops) -> None:
    """Stops the run in its first step: like a compiler it gives Python's handlers no turn."""
    plain = keras.layers.Dropout.call
    empty = tf.queue.FIFOQueue(1, tf.float32, [()])

    @functools.wraps(plain)
    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        return plain(layer, *args, **kwargs) + empty.dequeue()

    keras.layers.Dropout.call = call
    threading.Timer(_UNTIL_IN_STEP_S, stops.stop).start()


def _kill_in_a_write(stops: Stops, phase: str) -> None:
    """Kills when a half of this process's part is there, or when the parts are put together."""
    write_part, seal = sharded_files.write_part, manifest.seal

    def half(begun: str, rank: int, pieces: Any, texts: Any) -> None:
        content = np.concatenate(list(pieces))
        if phase == "part" and stops.done >= stops.batches:
            part = content[: content.size // 2]
            Path(begun, f"variables-{rank:05d}.safetensors").write_bytes(part.tobytes())
            stops.stop()
        write_part(begun, rank, [content], texts)

    def sealed(path: str, known: Any) -> None:
        if phase == "save" and stops.done >= stops.batches:
            stops.stop()
        seal(path, known)

    sharded_files.write_part, manifest.seal = half, sealed


if __name__ == "__main__":
    main()
