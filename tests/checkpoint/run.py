"""A run that is killed, or is not: python -m tests.checkpoint.run OUT --data KIND [--kill BATCH].

Trains with what has a state: dropout, momentum, batch normalization, a metric, callbacks; leaves
weights, slots, history and the row numbers of each batch in OUT.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np

ROWS, BATCH, EPOCHS = 44, 8, 3  # the last batch of an epoch has 4 rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--strategy", default="one_device")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--mesh")
    parser.add_argument("--data", default="arrays")
    parser.add_argument("--model", default="dense")
    parser.add_argument("--every", default="3")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--kill", type=int, help="after so many batches of this process")
    parser.add_argument("--kill-in", default="step", choices=("step", "validation", "save"))
    parser.add_argument("--once", action="store_true", help="and not when it is started again")
    parser.add_argument("--rank", type=int, default=0, help="of the process that is killed")
    options = parser.parse_args()

    import keras
    import tensorflow as tf

    import tfaccel

    if options.strategy == "plain":
        strategy: Any = tf.distribute.get_strategy()
    else:
        strategy = tfaccel.strategy(
            options.strategy,
            device_type="cpu",
            devices=options.devices,
            mesh=options.mesh,
            layouts="auto" if options.mesh else None,
        )
    if options.seed is not None:
        keras.utils.set_random_seed(options.seed)
    cluster = getattr(strategy, "cluster", None)
    rank = cluster.rank if cluster else 0
    every = options.every if options.every == "epoch" else int(options.every)
    resume = tfaccel.checkpoint.resume(f"{options.out}/checkpoints", every=every)
    data = DATA[options.data]()
    with strategy.scope():
        model = MODELS[options.model]()
    held_out = rows(12) if options.data != "generator" else None
    killed = Path(options.out, "killed")
    kills = options.kill and rank == options.rank and not (options.once and killed.exists())
    stops = Stops(options.kill, options.kill_in) if kills else None
    if kills:
        killed.touch()
    notes = Notes(Path(options.out, f"rows-{rank}.jsonl"))
    callbacks = [
        notes,
        keras.callbacks.ReduceLROnPlateau("loss", 0.5, patience=1, min_delta=10.0),
        keras.callbacks.EarlyStopping("loss", patience=9, restore_best_weights=True),
        resume,
        *([stops] if stops else []),
    ]
    if stops and options.kill_in == "save":
        stops.kill_in_save()
    steps = {"steps_per_epoch": 6} if options.data in ("generator", "repeated") else {}
    history = model.fit(
        **data,
        epochs=options.epochs,
        validation_data=held_out,
        callbacks=callbacks,
        verbose=0,
        **steps,
    )
    variables = [*model.variables, *model.optimizer.variables]
    variables += getattr(model, "second", model.optimizer).variables
    np.savez(
        f"{options.out}/end-{rank}.npz",
        *[np.asarray(keras.ops.convert_to_numpy(v)) for v in variables],
    )
    Path(options.out, f"history-{rank}.json").write_text(json.dumps(history.history))


class Stops:
    """Kills this process, as a machine that is lost does."""


def _stops() -> type:
    import keras

    class Stops(keras.callbacks.Callback):
        def __init__(self, batches: int, where: str) -> None:
            super().__init__()
            self.batches, self.where, self.done = batches, where, 0

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.done += 1
            if self.where == "step" and self.done == self.batches:
                os.kill(os.getpid(), signal.SIGKILL)

        def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
            if self.where == "validation" and self.done >= self.batches:
                os.kill(os.getpid(), signal.SIGKILL)

        def kill_in_save(self) -> None:
            from tfaccel.checkpoint import store

            plain = store.seal

            def seal(path: str) -> None:
                if self.done >= self.batches:
                    os.kill(os.getpid(), signal.SIGKILL)
                plain(path)

            store.seal = seal

    return Stops


def _notes() -> type:
    import keras

    class Notes(keras.callbacks.Callback):
        """Writes what the model saw of each batch: its layer keeps the numbers of the rows."""

        def __init__(self, path: Path) -> None:
            super().__init__()
            self.path = path

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            with self.path.open("a") as file:
                file.write(json.dumps([int(self.model.optimizer.iterations), logs["row"]]) + "\n")

    return Notes


def rows(number: int = ROWS) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    x = rng.normal(size=(number, 6)).astype("float32")
    x[:, 0] = np.arange(number)
    return x, rng.normal(size=(number, 2)).astype("float32")


def _dataset() -> Any:
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(rows())


def _augmented() -> dict[str, Any]:
    """A pipeline that draws in its functions: passes are not alike."""
    import tensorflow as tf

    def noisy(x: Any, y: Any) -> Any:
        return tf.concat([x[:1], x[1:] + tf.random.normal([5], seed=4)], 0), y

    return {"x": _dataset().shuffle(16).map(noisy).batch(BATCH)}


def _py_dataset(own_generator: bool = False) -> dict[str, Any]:
    import keras

    class Rows(keras.utils.PyDataset):
        def __init__(self) -> None:
            super().__init__()
            self.x, self.y = rows()
            self.order = np.arange(ROWS)
            self.rng = np.random.default_rng(3) if own_generator else None

        def __len__(self) -> int:
            return -(-ROWS // BATCH)

        def __getitem__(self, i: int) -> Any:
            chosen = self.order[i * BATCH : (i + 1) * BATCH]
            return self.x[chosen], self.y[chosen]

        def on_epoch_end(self) -> None:
            (self.rng or np.random).shuffle(self.order)

    return {"x": Rows()}


def _generator() -> dict[str, Any]:
    def batches() -> Any:
        x, y = rows()
        order = random.Random(5)
        while True:
            chosen = order.sample(range(ROWS), BATCH)
            yield x[chosen], y[chosen]

    return {"x": batches()}


DATA: dict[str, Any] = {
    "arrays": lambda: dict(zip("xy", rows(), strict=True), batch_size=BATCH),
    "tf_data": lambda: {"x": _dataset().shuffle(64).batch(BATCH).prefetch(2)},
    "tf_data_seeded": lambda: {"x": _dataset().shuffle(16, seed=3).batch(BATCH)},
    "tf_data_augmented": _augmented,
    "repeated": lambda: {"x": _dataset().shuffle(16).repeat().batch(BATCH)},
    "filtered": lambda: {"x": _dataset().shuffle(16).filter(lambda x, y: x[0] < 40.0).batch(BATCH)},
    "py_dataset": _py_dataset,
    "py_dataset_rng": lambda: _py_dataset(True),
    "generator": _generator,
}


def _metric() -> Any:
    import keras

    class Row(keras.metrics.Metric):
        """The sum of the row numbers of an epoch so far."""

        def __init__(self) -> None:
            super().__init__(name="row")
            self.sum = self.add_weight(name="sum", initializer="zeros")

        def update_state(self, y: Any, p: Any, sample_weight: Any = None) -> None:
            self.sum.assign_add(keras.ops.sum(p[:, 2]))

        def result(self) -> Any:
            return self.sum + 0.0

    return Row()


def _dense() -> Any:
    import keras

    images = keras.Input((6,))
    hidden = keras.layers.Dense(8, "tanh")(images)
    hidden = keras.layers.Dropout(0.3)(keras.layers.BatchNormalization()(hidden))
    # The number of the row goes through, for the metric.
    outputs = keras.layers.Concatenate()([keras.layers.Dense(2)(hidden), images[:, :1]])
    model = keras.Model(images, outputs)
    model.compile(
        keras.optimizers.Adam(0.01, weight_decay=0.01),
        lambda y, p: keras.ops.mean((y - p[:, :2]) ** 2, -1),
        metrics=[_metric()],
    )
    return model


MODELS: dict[str, Any] = {"dense": _dense}

if __name__ == "__main__":
    Stops, Notes = _stops(), _notes()
    main()
