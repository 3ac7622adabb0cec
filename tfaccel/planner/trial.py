"""Trains what was planned for a few steps on synthetic data, and reports the cost.

    python -m tfaccel.planner.trial FILE.py:builder --batch 64 --strategy mirrored --devices 2

prints one line of JSON: the peak memory, the time of a step and the loss. On a GPU the peak is
TensorFlow's own count, for each device. On CPUs it is the increase in the process's resident memory
since before the model was created, over all its logical devices, so run it alone in its process;
with ``MALLOC_MMAP_THRESHOLD_=65536`` in the environment, freed memory is returned at once.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one trial.

    Args:
        argv: the arguments after the module's name.

    Returns:
        The exit code.
    """
    args = _parser().parse_args(argv)
    import keras
    import tensorflow as tf

    import tfaccel
    from tfaccel import target

    if args.inter_op_threads is not None:
        tf.config.threading.set_inter_op_parallelism_threads(args.inter_op_threads)
    options = {
        name: value
        for name in (
            *("devices", "device_type", "precision", "mesh", "layouts"),
            "rematerialization",
        )
        if (value := getattr(args, name)) is not None
    }
    strategy = tfaccel.strategy(args.strategy, check="off", **options)
    with strategy.scope():
        _warm_up(keras)
        before = resident()
        loaded = target.load(args.target, args.input_shape, args.dtype, allocate=True)
        model = loaded.model
        if args.accumulate > 1:
            target.accumulate(model, args.accumulate)
    rows = args.batch // args.accumulate
    data = tf.data.Dataset.from_tensors(_batch(loaded.batch(rows))).repeat(args.steps)
    model.fit(data, epochs=1, verbose=0)
    reset_peak()
    clock = _Clock(keras)
    losses = model.fit(data, epochs=2, verbose=0, callbacks=[clock.callback]).history["loss"]
    found = {
        "peak": peak() - before,
        "state": resident() - before,
        "allocator": _allocator(tf),
        "seconds": statistics.median(clock.seconds),
        "loss": losses[-1],
    }
    if tfaccel.is_chief(strategy):
        print(json.dumps(found), flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tfaccel.planner.trial",
        description="Trains a model for a few steps on made-up data, and says what it took.",
    )
    parser.add_argument("target", help="path.py:function that builds a model, or a .keras file")
    parser.add_argument("--batch", type=int, required=True, help="rows of the global batch")
    parser.add_argument("--strategy", default="one_device")
    parser.add_argument("--devices", type=int)
    parser.add_argument("--device_type")
    parser.add_argument("--precision")
    parser.add_argument("--mesh")
    parser.add_argument("--layouts")
    parser.add_argument("--rematerialization")
    parser.add_argument("--accumulate", type=int, default=1, help="steps of an update")
    parser.add_argument("--input-shape", type=lambda t: [int(n) for n in t.split(",") if n])
    parser.add_argument("--dtype", default="float32", help="of that input")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--inter-op-threads", type=int, help="of TensorFlow, for all devices")
    return parser


def resident() -> int:
    """Resident bytes of this process, after returning free memory."""
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def reset_peak() -> None:
    """Resets `peak`, after returning free memory."""
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def peak() -> int:
    """The peak resident bytes of this process since `reset_peak`."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _warm_up(keras: Any) -> None:
    """Triggers TensorFlow's one-time allocations with a small first model."""
    import numpy as np

    small = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8)])
    small.compile("adam", "mse")
    x = np.zeros((64, 8), "float32")
    small.fit(x, x, batch_size=64, verbose=0)


def _batch(specs: Any) -> Any:
    import numpy as np
    import tensorflow as tf

    random = np.random.default_rng(0)

    def made(spec: Any) -> Any:
        if spec.dtype.is_floating:
            return random.normal(size=spec.shape).astype(spec.dtype.as_numpy_dtype)
        return np.zeros(spec.shape, spec.dtype.as_numpy_dtype)

    return tf.nest.map_structure(made, specs)


def _allocator(tf: Any) -> int | None:
    """The peak of the first GPU, as TensorFlow counts it."""
    if not tf.config.list_logical_devices("GPU"):
        return None
    return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])


class _Clock:
    """Times steps."""

    def __init__(self, keras: Any) -> None:
        self.seconds: list[float] = []
        began = [0.0]

        def begin(*_: Any, **__: Any) -> None:
            began[0] = time.perf_counter()

        def end(*_: Any, **__: Any) -> None:
            self.seconds.append(time.perf_counter() - began[0])

        self.callback = keras.callbacks.LambdaCallback(
            on_train_batch_begin=begin, on_train_batch_end=end
        )


if __name__ == "__main__":
    sys.exit(main())
