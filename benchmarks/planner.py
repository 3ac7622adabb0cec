"""How right `tfaccel plan` is about memory: its figures beside what was really made and run.

    python benchmarks/planner.py state               # parameters and slots of the coverage table
    python benchmarks/planner.py peak [--only lm]    # peaks of steps, each in its own process
    python benchmarks/planner.py published           # memory and time of runs that others published
    python benchmarks/planner.py tpu [--only lm]     # peaks beside those of the TPU's own compiler
    python benchmarks/planner.py time [--only lm]    # steps that were timed, and run

`state` builds every row of the model-parallel coverage table on one device, on meshes and fully
sharded, and compares the bytes of the buffers that a device then holds with what was counted.

`peak` trains each cell for some steps on logical CPUs (`tfaccel.planner.trial`) and takes the most
memory that the process had in a step above what it has between steps, in all its devices together.
Between steps it has variables, which `state` checks, and Python, TensorFlow and graphs, which are
no device's; so those are not compared. One device has TensorFlow's default of threads; of several,
which share a process here, each has four, so that none waits for another's operations. Freed memory
leaves the process at once (MALLOC_MMAP_THRESHOLD_), and oneDNN, which keeps a pool of its own, is
off.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import keras
from keras import layers

DEVICES = 4
MESHES = (("batch=2,model=2", "auto"), ("batch=4", "fully_sharded"))


@dataclass(frozen=True)
class Cell:
    """A model and a way to run it; the name of a mesh's layouts follows a space."""

    model: str
    batch: int
    way: str = "one_device"
    precision: str = "float32"

    def words(self) -> list[str]:
        """Of the trial."""
        given = [
            f"{__file__}:{self.model}",
            f"--batch={self.batch}",
            "--device_type=cpu",
            "--steps=1",
        ]
        given += [f"--precision={self.precision}"]
        name, _, layouts = self.way.partition(" ")
        if "=" in name:
            count = math.prod(int(axis.partition("=")[2]) for axis in name.split(","))
            given += ["--strategy=model_parallel", f"--mesh={name}"]
            given += [f"--layouts={layouts or 'auto'}"]
        else:
            name, _, number = name.partition("x")
            count = int(number or 1)
            given += [f"--strategy={name}"]
        given += [f"--inter-op-threads={4 * count}"] if count > 1 else []
        return [*given, f"--devices={count}"]


WAYS = ("one_device", "mirroredx2", "batch=2", "model=2", "batch=2 fully_sharded")
CELLS = (
    *(Cell("mlp", 16384, way) for way in WAYS),
    *(Cell("cnn", 32, way) for way in WAYS),
    *(Cell("lm", 16, way) for way in WAYS),
    *(Cell("resnet", 16, way) for way in WAYS),
    *(Cell("vit", 32, way) for way in WAYS),
    *(Cell("lm_remat", 16, way) for way in WAYS),
    *(Cell("rnn", 1024, way) for way in WAYS),
    *(Cell("bert", 16, way) for way in WAYS),
    *(Cell(model, batch, precision="mixed_bfloat16") for model, batch in
      (("mlp", 16384), ("cnn", 32), ("lm", 16), ("lm_remat", 16), ("rnn", 1024))),
    Cell("lm", 16, "mirroredx2", "mixed_bfloat16"),
)  # fmt: skip


def mlp() -> keras.Model:
    hidden = [layers.Dense(256, activation="relu") for _ in range(8)]
    return _compiled(keras.Sequential([keras.Input((16,)), *hidden, layers.Dense(10)]))


def cnn() -> keras.Model:
    parts: list[Any] = [keras.Input((64, 64, 3))]
    for filters in (32, 64, 128):
        parts += [layers.Conv2D(filters, 3, padding="same", use_bias=False)]
        parts += [layers.BatchNormalization(), layers.ReLU(), layers.MaxPooling2D()]
    return _compiled(keras.Sequential([*parts, layers.GlobalAveragePooling2D(), layers.Dense(10)]))


def lm(width: int = 256, heads: int = 4, blocks: int = 4, length: int = 128) -> keras.Model:
    tokens = keras.Input((length,), dtype="int32")
    x = layers.Embedding(1024, width)(tokens)
    for _ in range(blocks):
        x = _block(x, width, heads, True)
    x = layers.LayerNormalization()(x)
    return _compiled(keras.Model(tokens, layers.Dense(1024, dtype="float32")(x)))


def lm_remat() -> keras.Model:
    with keras.RematScope("full"):
        return lm()


def vit(width: int = 192, heads: int = 3, blocks: int = 6) -> keras.Model:
    image = keras.Input((64, 64, 3))
    x = layers.Conv2D(width, 8, strides=8)(image)
    x = layers.Reshape((64, width))(x)
    for _ in range(blocks):
        x = _block(x, width, heads, False)
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return _compiled(keras.Model(image, layers.Dense(10)(x)))


def resnet() -> keras.Model:
    return _compiled(
        keras.applications.ResNet50(weights=None, classes=10, input_shape=(64, 64, 3),
                                    classifier_activation=None)
    )  # fmt: skip


def rnn() -> keras.Model:
    x = keras.Input((16, 64))
    y = layers.LSTM(128, return_sequences=True, unroll=True)(x)
    return _compiled(keras.Model(x, layers.Dense(10)(layers.LSTM(128, unroll=True)(y))))


def bert() -> keras.Model:
    import keras_hub

    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=1024, num_layers=4, num_heads=4, hidden_dim=256, intermediate_dim=1024,
        max_sequence_length=128,
    )  # fmt: skip
    inputs = {name: keras.Input((128,), dtype="int32", name=name) for name in backbone.input}
    return _compiled(keras.Model(inputs, layers.Dense(10)(backbone(inputs)["pooled_output"])))


def _block(x: Any, width: int, heads: int, causal: bool) -> Any:
    y = layers.LayerNormalization()(x)
    x = x + layers.MultiHeadAttention(heads, width // heads)(y, y, use_causal_mask=causal)
    y = layers.LayerNormalization()(x)
    return x + layers.Dense(width)(layers.Dense(4 * width, activation="gelu")(y))


def _compiled(model: keras.Model) -> keras.Model:
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


# --- Peaks ----------------------------------------------------------------------------------


def peaks(only: str) -> list[dict[str, Any]]:
    """Runs all cells, and prints each beside its plan."""
    rows = []
    for cell in CELLS:
        if only not in f"{cell.model} {cell.way}":
            continue
        row = {"model": cell.model, "way": cell.way, "precision": cell.precision, **beside(cell)}
        rows.append(row)
        print(json.dumps(row), flush=True)
    errors = [abs(row["error"]) for row in rows if row["error"] is not None]
    if errors:
        print(f"{len(errors)} cells: median {statistics.median(errors):.1%}, "
              f"worst {max(errors):.1%}")  # fmt: skip
    return rows


def beside(cell: Cell) -> dict[str, Any]:
    """What was planned and what was seen, in MB of all devices together."""
    found = planned(cell)
    if found.peak is None:
        return {"planned": None, "seen": None, "error": None, "why": found.why_not}
    ran = trial(cell)
    devices = found.candidate.devices
    held = found.parameters + found.slots + found.other
    batch = batch_bytes(cell, found.rows)
    step = found.peak - held - batch
    seen = (ran["peak"] - ran["state"]) / devices
    return {
        "planned": round(devices * found.peak / 1e6, 1),
        "seen": round(devices * (held + batch + seen) / 1e6, 1),
        "error": (step - seen) / (held + batch + seen),
        "step_ms": round(1e3 * ran["seconds"]),
    }


def planned(cell: Cell) -> Any:
    """The estimate of a cell."""
    from tfaccel.distribute.model_parallel.mesh import MeshShape
    from tfaccel.planner import device_catalogue
    from tfaccel.planner.candidates import Candidate
    from tfaccel.planner.estimate import estimate

    given = dict(word[2:].split("=", 1) for word in cell.words()[1:])
    mesh = MeshShape.parse(given["mesh"]) if "mesh" in given else None
    count = int(given["devices"])
    candidate = Candidate(given["strategy"], count, 1, cell.precision, mesh, given.get("layouts"))
    machines = device_catalogue.Machines(device_catalogue.here(), 1, count)
    return estimate(candidate, cell.batch, machines, _models(cell.model, cell.batch))


@functools.cache
def _models(model: str, batch: int) -> Any:
    from tfaccel.planner.models import Models

    return Models(globals()[model], (2, batch))


def trial(cell: Cell) -> dict[str, Any]:
    """Runs a cell in a process of its own."""
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "TF_ENABLE_ONEDNN_OPTS": "0",
           "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}  # fmt: skip
    command = [sys.executable, "-m", "tfaccel.planner.trial", *cell.words()]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def batch_bytes(cell: Cell, rows: int) -> int:
    """Bytes of `rows` rows of a model's inputs and labels."""
    model = globals()[cell.model]()
    elements = sum(math.prod(one.shape[1:]) for one in model.inputs)
    labels = rows * (model.outputs[0].shape[1] if len(model.outputs[0].shape) == 3 else 1)
    return rows * elements * 4 + labels * 4


# --- Parameters and slots -------------------------------------------------------------------


def states(only: str) -> int:
    """Builds all rows of the coverage table; returns how many were off."""
    import tensorflow as tf

    import tfaccel
    from tests.model_parallel.coverage.zoo import ZOO

    cpu = tf.config.list_physical_devices("CPU")[0]
    logical = [tf.config.LogicalDeviceConfiguration()] * DEVICES
    tf.config.set_logical_device_configuration(cpu, logical)
    strategies = {  # before anything else uses TensorFlow
        (mesh, layouts): tfaccel.strategy(
            "model_parallel",
            device_type="cpu",
            devices=DEVICES,
            mesh=mesh,
            layouts=layouts,
            check="off",
        )
        for mesh, layouts in MESHES
    }
    off = checked = 0
    for name, row in ZOO.items():
        if only not in name:
            continue
        for mesh, layouts in MESHES:
            try:
                counted, real = state(row, mesh, layouts, strategies[mesh, layouts])
            except Exception as error:  # what a row that is refused raises
                print(f"{name}, {mesh} {layouts}: not built: {str(error).splitlines()[0][:120]}")
                continue
            checked += 1
            off += counted != real
            if counted != real:
                print(f"{name}, {mesh} {layouts}: counted {counted}, held {real}", flush=True)
    print(f"{checked} builds: {off} of them off by a byte or more")
    return off


def state(
    row: Any, mesh: str, layouts: str, strategy: Any
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Parameters and slots of one row, counted and held by the first device."""
    from tests.planner.real import held
    from tfaccel.distribute.model_parallel.layout_planner import LayoutPlanner
    from tfaccel.distribute.model_parallel.mesh import MeshShape
    from tfaccel.planner.abstract import AbstractStrategy
    from tfaccel.planner.state import count

    def build() -> Any:
        keras.config.set_floatx(row.floatx)
        model = row.model()
        if not model.built:
            import numpy as np

            x = row.data()[0]
            model.build(keras.tree.map_structure(lambda a: (None, *np.shape(a)[1:]), x))
        optimizer = keras.optimizers.Adam()
        optimizer.build(model.trainable_variables)
        model.optimizer = optimizer
        return model

    abstract = AbstractStrategy()
    with abstract.scope():
        model = build()
    counted = count(model, abstract.made, LayoutPlanner(MeshShape.parse(mesh), layouts))
    # Which layers make a pair depends on those before: each row is a program's first model.
    strategy.planner = LayoutPlanner(MeshShape.parse(mesh), layouts)
    with strategy.scope():
        real = build()
    return (counted.parameters, counted.slots), (held(real.weights),
                                                 held(real.optimizer.variables))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("state", "peak", "published", "tpu", "time"))
    parser.add_argument("--only", default="", help="rows or cells whose name holds this")
    args = parser.parse_args()
    if args.what == "state":
        sys.exit(1 if states(args.only) else 0)
    if args.what == "peak":
        peaks(args.only)
    elif args.what == "time":
        import planner_times

        planner_times.report(args.only)
    elif args.what == "published":
        import published

        published.report(args.only)
    else:
        import planner_tpu

        planner_tpu.report(args.only)


if __name__ == "__main__":
    main()
