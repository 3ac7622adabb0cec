"""Runs programs of the table under one strategy, in this process, and keeps what came out.

Usage: python -m tests.programs.run OUT --only PROGRAM,PROGRAM --strategy NAME [--devices N]
           [--mesh MESH] [--communication auto]

The strategy `plain` is Keras without tfaccel.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from tests.fallbacks import Fallbacks

LIMIT_S = 240  # of one program, for what hangs
AGAIN = 75  # the exit code that asks to be started again behind a program that broke the process
NOT_DONE = "the process died or stood still"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", required=True)
    parser.add_argument("--strategy", required=True)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--mesh")
    parser.add_argument("--communication", default="auto")
    asked = parser.parse_args()

    strategy: Any = None
    rank = 0
    if asked.strategy != "plain":
        import tfaccel

        strategy = tfaccel.strategy(
            asked.strategy,
            devices=asked.devices,
            device_type="cpu",
            mesh=asked.mesh,
            communication=asked.communication,
        )
        rank = strategy.cluster.rank if getattr(strategy, "cluster", None) else 0

    import tensorflow as tf

    from tests.programs.table import PROGRAMS

    strategy = strategy or tf.distribute.get_strategy()
    for name in asked.only.split(","):
        path = asked.out / f"{name}.rank{rank}.json"
        _write(path, {"error": NOT_DONE})
        print(f"{name} ...", flush=True)
        watchdog = threading.Timer(LIMIT_S, os._exit, (AGAIN,))
        watchdog.daemon = True
        watchdog.start()
        started = time.monotonic()
        with Fallbacks() as fallbacks:
            result = measured(PROGRAMS[name], strategy, asked.out / "files" / name)
        result["fallbacks"] = fallbacks.said
        watchdog.cancel()
        result["seconds"] = round(time.monotonic() - started, 1)
        _write(path, result)
        said = result.get("error", "")
        print(f"{name}: {result['seconds']} s {said[:300]}", flush=True)
        if said and asked.strategy != "plain" and "Error: tfaccel: " not in said:
            os._exit(AGAIN)  # after one failed collective, every other of the process may fail


def measured(program: Any, strategy: Any, folder: Path) -> dict[str, Any]:
    """The numbers of a program, or its error as one line and whole."""
    import keras

    folder.mkdir(parents=True, exist_ok=True)
    keras.utils.clear_session(free_memory=False)  # without a look for garbage
    keras.config.set_dtype_policy("float32")
    keras.utils.set_random_seed(7)
    try:
        found = program.run(strategy, *[str(folder)] * program.needs_folder)
        return {"numbers": as_lists(found)}
    except Exception as error:
        text = re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")
        return {"error": text, "traceback": traceback.format_exc()}


def as_lists(value: Any) -> Any:
    """A value that JSON can hold, with every digit."""
    import numpy as np

    if isinstance(value, dict):
        return {str(key): as_lists(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_lists(each) for each in value]
    if value is None or isinstance(value, str):
        return value
    array = np.asarray(value)
    if array.dtype.kind in "OSU":
        return [str(each) for each in array.ravel()]
    return array.astype("float64").tolist()


def _write(path: Path, result: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result), "utf-8")
    part.replace(path)


if __name__ == "__main__":
    main()
