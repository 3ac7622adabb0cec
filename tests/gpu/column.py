"""Trains the rows of one column in this process, and keeps what came of each as it comes.

Usage: python -m tests.gpu.column OUT --column NAME --on gpu --only ROW,ROW [--record FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import pickle
import time
import traceback
from typing import Any

from tests.gpu.columns import COLUMNS, Column

ROW_S = {"gpu": 90, "cpu": 600}  # a row that takes longer hangs: the process says where, and ends
SPOILT = ("Collective ops is aborted", "CUDA_ERROR", "CUDA error", "NCCL", "cudnn", "cuDNN")
PART_MB = 4096  # of GPU memory, for each part of a divided GPU


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--column", required=True, choices=COLUMNS)
    parser.add_argument("--on", required=True, choices=("gpu", "cpu"))
    parser.add_argument("--only", required=True)
    parser.add_argument("--record", default="")
    asked = parser.parse_args()
    faulthandler.enable()
    faulthandler.dump_traceback_later(ROW_S[asked.on], exit=True)
    column, started = COLUMNS[asked.column], time.monotonic()
    scope, rank, replicas = strategy_of(column, asked.on)

    from tests.gpu import rows

    prepared = time.monotonic() - started
    for name in asked.only.split(","):
        faulthandler.dump_traceback_later(ROW_S[asked.on], exit=True)
        path = os.path.join(asked.out, f"{name}.rank{rank}.pickle")
        open(path + ".begun", "w").close()
        print(f"{name} ...", flush=True)
        folder = os.path.join(asked.out, "files", name)
        os.makedirs(folder, exist_ok=True)
        started = time.monotonic()
        try:
            result = rows.run(name, scope, folder)
        except Exception:
            result = {"error": traceback.format_exc()}
        result |= {"replicas": replicas, "seconds": time.monotonic() - started}
        with open(path + ".part", "wb") as file:
            pickle.dump(result, file)
        os.replace(path + ".part", path)
        about = {"seconds": round(result["seconds"], 2), "start_s": round(prepared, 2)}
        where = {"column": asked.column, "row": name, "rank": rank}
        tail = {"error": result["error"][-1500:]} if "error" in result else {}
        record(asked.record, {**where, "trained": not tail, **about, **tail})
        if any(sign in result.get("error", "") for sign in SPOILT):
            os._exit(1)  # nothing would train here any more; another process goes on


def strategy_of(column: Column, on: str) -> tuple[Any, int, int]:
    """Sets the devices up; a scope, our rank, and the number of replicas."""
    import tensorflow as tf

    # Plain Keras multiplies in full precision too, or nothing could be compared.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    gpus = tf.config.list_physical_devices("GPU") if on == "gpu" else []
    if gpus and column.devices > 1 and not column.real:
        part = tf.config.LogicalDeviceConfiguration(memory_limit=PART_MB)
        tf.config.set_logical_device_configuration(gpus[0], [part] * column.devices)
    if column.strategy == "plain":
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
    compile_models(column.compiled)
    if column.strategy == "plain":
        return contextlib.nullcontext, 0, 1

    import tfaccel

    strategy = tfaccel.strategy(
        column.strategy, devices=column.devices, device_type=on, **column.options
    )
    print(tfaccel.describe(strategy), flush=True)
    rank = strategy.cluster.rank if getattr(strategy, "cluster", None) else 0
    return strategy.scope, rank, strategy.num_replicas_in_sync


def compile_models(compiled: bool) -> None:
    """Decides about XLA for every model: with a GPU, Keras's own choice differs by strategy."""
    import keras

    # Where it is defined: Keras asks whether a model has another `compile` than its trainer's.
    trainer: Any = next(kind for kind in keras.Model.__mro__ if "compile" in vars(kind))
    compile_ = trainer.compile

    def chosen(model: keras.Model, *args: Any, **kwargs: Any) -> None:
        compile_(model, *args, **{**kwargs, "jit_compile": compiled})

    trainer.compile = chosen


def record(path: str, line: dict[str, Any]) -> None:
    """Adds a line to the file of results, which other processes write too."""
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
