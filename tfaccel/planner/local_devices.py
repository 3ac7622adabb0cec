"""`--devices here`: the speed of this machine's devices, measured once and cached.

A matrix product gives operations/s, a copy bytes/s of memory, an all-reduce bytes/s between
devices. They run in a separate process for a few seconds, since a plan uses no device. The result
is kept in the user's cache directory, by the names of machine and processor and the number of
cores.

    python -m tfaccel.planner.local_devices        # measures again, and prints it
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from tfaccel import hardware
from tfaccel.errors import StrategyError

_SECONDS = 0.5  # of each measurement
_LIMIT = 300  # in total, including TensorFlow's start on a busy machine
_FAILED = "tfaccel: devices are 'here', and they could not be measured ({}), expected {}."


def measured() -> dict[str, Any]:
    """The rates of this machine, from the cache or measured now.

    Returns:
        ``kind``, ``count``, ``memory`` (bytes), ``bandwidth`` and ``link`` (bytes/s; no link where
        there is one device), ``peak`` (FLOP/s by precision) and ``date``.

    Raises:
        StrategyError: when the measurement fails.
    """
    file = cache_file()
    try:
        found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        found = _in_a_process()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            unfinished = file.with_suffix(f".{os.getpid()}")
            unfinished.write_text(json.dumps(found), "utf-8")
            unfinished.replace(file)
        except OSError:  # it is measured again the next time
            pass
    return found


def cache_file(of: str = "devices") -> Path:
    """A cache file of this machine's measurements; each machine has its own."""
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    machine = (platform.node(), _processor(), hardware.cores(), gpus if gpus != "-1" else "")
    name = hashlib.sha256(repr(machine).encode()).hexdigest()[:16]
    return Path(folder) / "tfaccel" / f"{of}-{name}.json"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("model name")), "")


def _in_a_process() -> dict[str, Any]:
    command = [sys.executable, "-m", "tfaccel.planner.local_devices"]
    # A plan hides the GPUs from itself, but not from this process.
    env = {k: v for k, v in os.environ.items() if (k, v) != ("CUDA_VISIBLE_DEVICES", "-1")}
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=_LIMIT)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired as error:
        raise StrategyError(
            _FAILED.format(f"not done in {_LIMIT} s", "some seconds; name a device")
        ) from error
    except (IndexError, ValueError) as error:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise StrategyError(
            _FAILED.format(
                last, "a TensorFlow that runs; try python -m tfaccel.planner.local_devices"
            )
        ) from error
    return found


def measure() -> dict[str, Any]:
    """Measures the devices of this process."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        devices = [f"GPU:{k}" for k in range(len(gpus))]
        details = tf.config.experimental.get_device_details(gpus[0])
        name = str(details.get("device_name", "GPU"))
        half = (details.get("compute_capability") or (0, 0)) >= (8, 0)
        precisions = {"float32": tf.float32}
        precisions |= {"mixed_bfloat16": tf.bfloat16} if half else {"mixed_float16": tf.float16}
        size, memory = 8192, gpu_memory()
    else:
        processor = tf.config.list_physical_devices("CPU")[0]
        parts = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(processor, parts)
        devices, name = ["CPU:0", "CPU:1"], _processor().partition(": ")[2] or "CPU"
        # A plan only uses float32 on CPUs, so only that is measured.
        precisions, size = {"float32": tf.float32}, 1536
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with tf.device(devices[0]):
        peak = {key: _product(tf, size, dtype) for key, dtype in precisions.items()}
        bandwidth = _copy(tf, (256 if gpus else 64) << 20)
    found = {
        "name": name,
        "kind": "gpu" if gpus else "cpu",
        "count": len(gpus) or 1,
        "memory": memory,
        "bandwidth": bandwidth,
        "peak": peak,
        "date": date.today().isoformat(),
    }
    if len(devices) > 1:
        found["link"] = _all_reduce(tf, devices, 16 << 20)
    return found


def gpu_memory() -> int:
    """Bytes of the first GPU, as reported by its driver."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    return int(said.splitlines()[0]) << 20


def _product(tf: Any, size: int, dtype: Any) -> float:
    """FLOP/s of a product of two (size, size) matrices."""
    a = tf.ones((size, size), dtype)
    function = tf.function(lambda: tf.reduce_max(tf.matmul(a, a)))
    return 2 * size**3 / _seconds(lambda: function().numpy())


def _copy(tf: Any, size: int) -> float:
    """Bytes/s that are read and written by an addition of a number to `size` bytes."""
    a = tf.ones((size // 4,))
    function = tf.function(lambda: (a + 1.0)[0])
    return 2 * size / _seconds(lambda: function().numpy())


def _all_reduce(tf: Any, devices: list[str], size: int) -> float:
    """Bytes/s that a device sends while `size` bytes are summed over all."""
    from tfaccel.planner import costs

    strategy = tf.distribute.MirroredStrategy(devices)
    value = strategy.run(lambda: tf.ones((size // 4,)))

    @tf.function
    def reduce() -> Any:
        return strategy.run(
            lambda v: tf.distribute.get_replica_context().all_reduce("SUM", v)[0], (value,)
        )

    seconds = _seconds(
        lambda: [one.numpy() for one in strategy.experimental_local_results(reduce())]
    )
    return costs.all_reduce(size, len(devices)) / seconds


def _seconds(run: Callable[[], Any]) -> float:
    """The shortest of several runs, after a warm-up."""
    run()
    shortest, end = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < end:
        began = time.perf_counter()
        run()
        shortest = min(shortest, time.perf_counter() - began)
    return shortest


if __name__ == "__main__":
    print(json.dumps(measure()))
