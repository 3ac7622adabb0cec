"""On a GPU: what `auto` chooses, and how memory is taken."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest

from tests.gpu.conftest import visible
from tests.support import run_child

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

_BEGIN = """
import json, os, subprocess
import tensorflow as tf
gpu = tf.config.list_physical_devices("GPU")[0]
"""
_ONE = """
import tfaccel
strategy = tfaccel.strategy("auto")
import keras
with strategy.scope():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
model.fit(tf.zeros((8, 4)), tf.zeros((8, 2)), verbose=0)
asked = "nvidia-smi --query-compute-apps=pid,used_memory --format=csv,noheader,nounits"
try:
    said = subprocess.run(asked.split(), capture_output=True, text=True, timeout=20).stdout
except OSError:
    said = ""
used = [int(r.split(",")[1]) for r in said.splitlines() if r.split(",")[0] == str(os.getpid())]
print("SEEN " + json.dumps({
    "description": tfaccel.describe(strategy),
    "grows": tf.config.experimental.get_memory_growth(gpu),
    "weights": model.weights[0].value.device,
    "used_mib": used,
}))
"""
_TWO = """
part = tf.config.LogicalDeviceConfiguration(memory_limit=1024)
tf.config.set_logical_device_configuration(gpu, [part, part])
import tfaccel
auto = tfaccel.strategy("auto")
named = tfaccel.strategy("mirrored", devices="GPU:1,GPU:0")
print("SEEN " + json.dumps({
    "description": tfaccel.describe(auto),
    "named": [d.rpartition("device:")[2] for d in named.extended.worker_devices],
    "precision": tfaccel.describe(tfaccel.strategy("one_device", precision="auto")),
}))
"""


def seen(on: str, script: str) -> dict[str, Any]:
    if on != "gpu":
        pytest.skip("no GPU: this asks how one is used")
    env = {"CUDA_VISIBLE_DEVICES": visible()}
    said = run_child(["-c", _BEGIN + script], env=env, limit_s=100)
    (line,) = [line for line in said.splitlines() if line.startswith("SEEN ")]
    found: dict[str, Any] = json.loads(line.removeprefix("SEEN "))
    return found


@pytest.fixture(scope="module")
def one(on: str) -> dict[str, Any]:
    return seen(on, _ONE)


@pytest.fixture(scope="module")
def two(on: str) -> dict[str, Any]:
    return seen(on, _TWO)


def test_auto_takes_one_gpu_as_it_is(one: dict[str, Any]) -> None:
    assert "one_device (one GPU in this machine)" in one["description"]
    assert "GPU:0" in one["description"]
    assert one["weights"].endswith("GPU:0")


def test_memory_grows(one: dict[str, Any]) -> None:
    assert one["grows"] is True


def test_a_small_model_takes_little_memory(one: dict[str, Any]) -> None:
    if shutil.which("nvidia-smi") is None or not one["used_mib"]:
        pytest.skip("nvidia-smi does not tell what this process uses")
    held = subprocess.run(
        ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    ).stdout
    assert one["used_mib"][0] < int(held.split()[0]) / 4


def test_auto_mirrors_over_two(two: dict[str, Any]) -> None:
    assert "mirrored (2 GPUs in this machine)" in two["description"]
    assert "GPU:0, GPU:1" in two["description"]


def test_logical_gpus_can_be_named(two: dict[str, Any]) -> None:
    assert two["named"] == ["GPU:1", "GPU:0"]


def test_auto_precision_knows_the_gpu(two: dict[str, Any]) -> None:
    import tensorflow as tf

    gpu = tf.config.list_physical_devices("GPU")[0]
    capability = tf.config.experimental.get_device_details(gpu)["compute_capability"]
    expected = "mixed_bfloat16" if capability >= (8, 0) else "mixed_float16"
    assert f"precision  {expected}" in two["precision"]
