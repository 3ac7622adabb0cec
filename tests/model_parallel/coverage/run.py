"""Runs rows of the coverage table in this process and keeps what came out, a file for each.

Usage: python -m tests.model_parallel.coverage.run OUT --mesh batch=2,model=2
           [--layouts LAYOUTS] [--only ROW,ROW]

`--mesh none` is Keras without tfaccel. Rows that OUT has already are left as they are, so that a
run that an operation killed goes on behind that row when it is started again.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import pickle
import threading
import time
import traceback
from pathlib import Path
from typing import Any

ROW_LIMIT_S = 180
AGAIN = 75  # the exit code that asks to be started again


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--mesh", required=True)
    parser.add_argument("--layouts")
    parser.add_argument("--only", default="")
    asked = parser.parse_args()

    scope: Any = contextlib.nullcontext
    if asked.mesh != "none":
        import tfaccel

        # The table compares with one device itself.
        scope = tfaccel.strategy(
            "model_parallel",
            device_type="cpu",
            mesh=asked.mesh,
            layouts=asked.layouts,
            check="off",
        ).scope

    from tests.model_parallel.coverage.zoo import ZOO

    asked.out.mkdir(parents=True, exist_ok=True)
    for name in [n for n in asked.only.split(",") if n] or ZOO:
        path = asked.out / f"{file_name(name)}.pickle"
        if path.exists():
            continue
        row = ZOO[name]
        if row.package and importlib.util.find_spec(row.package) is None:
            continue
        path.write_bytes(pickle.dumps({"error": "the process died or stood still"}))
        print(f"{name} ...", end=" ", flush=True)
        started = time.monotonic()
        watchdog = threading.Timer(ROW_LIMIT_S, os._exit, (AGAIN,))
        watchdog.start()
        result = measure(row, scope)
        watchdog.cancel()
        result["seconds"] = round(time.monotonic() - started, 1)
        print(result["seconds"], result.get("error", "")[:150].replace("\n", " "), flush=True)
        path.write_bytes(pickle.dumps(result))
        if "error" in result and not _before_running(result["error"]):
            os._exit(AGAIN)  # after one failed collective, every other of the process fails


def _before_running(error: str) -> bool:
    """Whether the program was refused or could not be laid out, so that nothing of it ran."""
    return "tensorflow/dtensor/mlir" in error or "tfaccel: " in error or "layout" in error


def file_name(row: str) -> str:
    """The stem of a row's file."""
    return "".join(c if c.isalnum() else "_" for c in row)


def measure(row: Any, scope: Any) -> dict[str, Any]:
    """Trains, and predicts where the row compares that.

    Returns:
        what was computed; with an error, its text, the call that raised it, and what came before.
    """
    result: dict[str, Any] = {}
    try:
        _train(row, scope, result)
        if "repeated" in row.compared:
            again: dict[str, Any] = {}
            _train(row, scope, again)
            result["again"] = again["losses"]
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        result |= {"error": text, "traceback": traceback.format_exc()}
    return result


def _train(row: Any, scope: Any, result: dict[str, Any]) -> None:
    import keras
    import tensorflow as tf

    from tests.model_parallel.coverage.row import BATCH

    class Losses(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            result.setdefault("losses", []).append({k: float(np_(v)) for k, v in logs.items()})

    def np_(value: Any) -> Any:
        import numpy as np

        return np.mean(np.asarray(value, "float64"))

    keras.utils.clear_session(free_memory=False)  # without a look for garbage
    keras.config.set_floatx(row.floatx)
    keras.utils.set_random_seed(1)
    x, y = row.data()
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
    whole = data.take(1)
    predicts = "before" in row.compared
    with scope():
        result["stage"] = "make"
        model = row.model()
        loss = row.loss() if isinstance(row.loss, type) else row.loss
        model.compile(optimizer=keras.optimizers.SGD(row.rate), loss=loss, metrics=row.metrics())
        _keep_operations(model, result.setdefault("operations", set()))
        if predicts:
            result["stage"] = "predict"
            before = model.predict(whole, verbose=0)
            result["before"] = before
            result["shapes"] = [list(p.shape) for p in tf.nest.flatten(before)]
        result["stage"] = "fit"
        model.fit(data, verbose=0, epochs=1, shuffle=False, callbacks=[Losses()])
        result["first_loss"] = result["losses"][0]["loss"]
        if predicts:
            result["after"] = model.predict(whole, verbose=0)
    result["weights"] = [v.numpy() for v in model.variables if "seed_generator" not in v.path]
    undivided = getattr(model, "_tfaccel_host_fallback", None)
    result["undivided"] = sorted(set(undivided.reasons.values())) if undivided else []
    result["stage"] = "done"


def _keep_operations(model: Any, kept: set[str]) -> None:
    """Adds the types of the operations of the model's steps to `kept` when they are traced."""
    import tensorflow as tf

    def kept_after(step: Any) -> Any:
        def wrapped(data: Any) -> Any:
            outputs = step(data)
            graph = tf.compat.v1.get_default_graph().as_graph_def()
            kept.update(node.op for node in graph.node)
            kept.update(node.op for f in graph.library.function for node in f.node_def)
            return outputs

        return wrapped

    for name in ("train_step", "test_step", "predict_step"):
        object.__setattr__(model, name, kept_after(getattr(model, name)))


if __name__ == "__main__":
    main()
