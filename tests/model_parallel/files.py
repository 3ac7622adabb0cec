"""Writes a trained model in every format, or reads it back and goes on; run as a module.

Usage: python -m tests.model_parallel.files write|read FOLDER STRATEGY [MESH LAYOUTS]

Both print the loss and the sum of the weights after one more epoch.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfaccel
from tests.model_parallel.test_mesh_check import Reverses
from tfaccel.distribute.model_parallel import rewrites
from tfaccel.errors import CheckError, TfaccelError

EVERY_TWO: Any = {"save_freq": 2, "save_weights_only": True}
X = np.random.default_rng(0).normal(size=(32, 8)).astype("float32")
Y = np.arange(32) % 4


def build() -> keras.Model:
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(16, "gelu"),
            keras.layers.BatchNormalization(synchronized=True),
            keras.layers.Dense(8),
            keras.layers.Dense(4),
        ]
    )
    model.compile(
        keras.optimizers.Adam(0.01, epsilon=1e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def fit(model: keras.Model, **more: Any) -> Any:
    return model.fit(X, Y, batch_size=16, shuffle=False, verbose=0, **more)


def go_on(model: keras.Model) -> list[float]:
    loss = fit(model).history["loss"][0]
    return [loss, size(model)]


def size(model: keras.Model) -> float:
    return float(sum(np.abs(w).sum() for w in model.get_weights()))


class Stop(keras.callbacks.Callback):
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if epoch == 1:
            raise KeyboardInterrupt


def write(folder: str, scope: Any) -> dict[str, Any]:
    with scope():
        model = build()
    fit(model)
    model.save(f"{folder}/model.keras")
    model.save_weights(f"{folder}/model.weights.h5")
    model.export(f"{folder}/exported", verbose=False)
    tfaccel.checkpoint.save(model, f"{folder}/sharded")
    checkpoint = tf.train.Checkpoint(model=model)
    if os.environ.get("TF_CONFIG") is None:  # of several processes, each would write all of it
        checkpoint.write(f"{folder}/checkpoint")
    backup = keras.callbacks.BackupAndRestore(f"{folder}/backup")
    written = [
        keras.callbacks.ModelCheckpoint(f"{folder}/kept/{{epoch}}.keras"),
        keras.callbacks.ModelCheckpoint(f"{folder}/kept/{{batch}}.weights.h5", **EVERY_TWO),
        keras.callbacks.TensorBoard(f"{folder}/board", histogram_freq=1),
        keras.callbacks.CSVLogger(f"{folder}/log.csv"),
    ]
    with contextlib.suppress(KeyboardInterrupt):
        fit(model, epochs=5, initial_epoch=1, callbacks=[backup, *written, Stop()])
    said: dict[str, Any] = {"third epoch": go_on(model)}
    if os.environ.get("TF_CONFIG") is not None:
        fails_everywhere(model, folder)
        said["refused"] = refused(scope)
    return said


def fails_everywhere(model: keras.Model, folder: str) -> None:
    """What the chief cannot write is an error on every process, and the job goes on."""
    (Path(folder) / "kept" / "file").touch()
    path = f"{folder}/kept/file/x"
    writers = [
        lambda: model.save(f"{path}.keras"),
        lambda: model.export(path, verbose=False),
        lambda: fit(model, callbacks=[keras.callbacks.ModelCheckpoint(f"{path}.keras")]),
        lambda: fit(model, callbacks=[keras.callbacks.BackupAndRestore(path)]),
    ]
    chief = tfaccel.is_chief(model.distribute_strategy)
    for write in writers:
        with pytest.raises(OSError if chief else TfaccelError, match="" if chief else "worker 0 c"):
            write()


def refused(scope: Any) -> str:
    """What each of several processes is told of an operation that is laid out wrongly."""
    for kind in ("StridedSlice", "StridedSliceGrad"):
        del rewrites.REWRITES[kind]
    with scope():
        model = keras.Sequential([keras.Input((8,)), Reverses(), keras.layers.Dense(4)])
        model.compile("adam", "mse")
    try:
        model.fit(X, X[:, :4], batch_size=16, verbose=0)
    except CheckError as error:
        return str(error)
    raise AssertionError("the first step went through")


def read(folder: str, scope: Any) -> dict[str, list[float]]:
    said = {}
    with scope():
        model = keras.models.load_model(f"{folder}/model.keras")
    if not hasattr(model.distribute_strategy, "mesh"):
        exported = tf.saved_model.load(f"{folder}/exported")
        served = exported.serve(X)
        np.testing.assert_allclose(served, model.predict(X, verbose=0), rtol=1e-4, atol=1e-6)
    fit(model)
    said["keras"] = go_on(model)
    for name in ("weights", "sharded", "checkpoint"):
        with scope():
            model = build()
            model.optimizer.build(model.trainable_variables)
        if name == "weights":
            model.load_weights(f"{folder}/model.weights.h5")
        elif name == "sharded":
            tfaccel.checkpoint.restore(model, f"{folder}/sharded")
        elif os.path.exists(f"{folder}/checkpoint.index"):
            tf.train.Checkpoint(model=model).read(f"{folder}/checkpoint").expect_partial()
        else:
            continue
        fit(model)
        said[name] = go_on(model)
    with scope():
        model = build()
    kept = keras.callbacks.BackupAndRestore(f"{folder}/backup", delete_checkpoint=False)
    history = fit(model, epochs=3, callbacks=[kept])
    said["backup"] = [
        history.history["loss"][-1],
        float(sum(np.abs(w).sum() for w in model.get_weights())),
    ]
    said["backup epochs"] = history.epoch
    return said


def main() -> None:
    action, folder, name, *mesh = sys.argv[1:]
    options = dict(zip(("mesh", "layouts"), mesh, strict=False))
    devices = {"devices": 2} if name == "mirrored" else {}
    strategy = tfaccel.strategy(name, device_type="cpu", **options, **devices)
    keras.utils.set_random_seed(3 if action == "write" else 4)
    said = (write if action == "write" else read)(folder, strategy.scope)
    if tfaccel.is_chief(strategy):
        print("SAID", json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
