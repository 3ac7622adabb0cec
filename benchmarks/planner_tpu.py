"""Plans for TPUs beside what the TPU's own compiler reports, as `tfaccel tpu check` does.

    python benchmarks/planner_tpu.py MODEL      # one model, a line of JSON for each topology

Each model's step is lowered once and compiled for every topology, in a process of its own, where
libtpu may crash. The same batch is on one device and divided among four.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import keras
import planner_models
from keras import layers
from planner_models import compiled

TOPOLOGIES = ("v5e:1x1", "v5e:2x2", "v4:2x2x1", "v6e:2x2")
MIB = 1 << 20


def mlp(blocks: int = 8, width: int = 256) -> keras.Model:
    hidden = [layers.Dense(width, activation="relu") for _ in range(blocks)]
    return compiled(keras.Sequential([keras.Input((64,)), *hidden, layers.Dense(10)]), "adam")


def cnn() -> keras.Model:
    parts: list[Any] = [keras.Input((64, 64, 3))]
    for filters in (32, 64, 128):
        parts += [layers.Conv2D(filters, 3, padding="same", use_bias=False)]
        parts += [layers.BatchNormalization(), layers.ReLU(), layers.MaxPooling2D()]
    last = [layers.GlobalAveragePooling2D(), layers.Dense(10)]
    return compiled(keras.Sequential([*parts, *last]), "adam")


def autoencoder() -> keras.Model:
    x = image = keras.Input((64, 64, 3))
    for filters in (32, 64, 128):
        x = layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu")(x)
    for filters in (64, 32, 16):
        x = layers.Conv2DTranspose(filters, 3, strides=2, padding="same", activation="relu")(x)
    model = keras.Model(image, layers.Conv2D(3, 3, padding="same")(x))
    model.compile("adam", "mse")
    return model


def application(name: str) -> keras.Model:
    make = getattr(keras.applications, name)
    model = make(weights=None, classes=100, input_shape=(224, 224, 3), classifier_activation=None)
    return compiled(model, keras.optimizers.SGD(0.1, momentum=0.9))


def recurrent() -> keras.Model:
    x = keras.Input((16, 64))
    y = layers.LSTM(128, return_sequences=True, unroll=True)(x)
    return compiled(keras.Model(x, layers.Dense(10)(layers.LSTM(128, unroll=True)(y))), "adam")


def vit(width: int = 384, heads: int = 6, blocks: int = 8) -> keras.Model:
    image = keras.Input((128, 128, 3))
    x = layers.Reshape((64, width))(layers.Conv2D(width, 16, strides=16)(image))
    x = planner_models.stream(x, blocks, False, width=width, heads=heads, inner=4 * width,
                              causal=False)  # fmt: skip
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return compiled(keras.Model(image, layers.Dense(100)(x)), "adam")


def tables() -> keras.Model:
    ids = keras.Input((26,), dtype="int32")
    x = layers.Flatten()(layers.Embedding(200_000, 32)(ids))
    for width in (1024, 512, 256):
        x = layers.Dense(width, activation="relu")(x)
    return compiled(keras.Model(ids, layers.Dense(2)(x)), "adagrad")


def hub_bert() -> keras.Model:
    import keras_hub

    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=8192, num_layers=6, num_heads=8, hidden_dim=512, intermediate_dim=2048,
        max_sequence_length=128,
    )  # fmt: skip
    inputs = {name: keras.Input((128,), dtype="int32", name=name) for name in backbone.input}
    outputs = layers.Dense(10)(backbone(inputs)["pooled_output"])
    return compiled(keras.Model(inputs, outputs), "adam")


def decoder(blocks: int, width: int, length: int, **more: Any) -> Callable[[], keras.Model]:
    sizes = {"heads": width // 64, "vocabulary": 8192, "optimizer": "adam"} | more
    return lambda: planner_models.decoder(blocks, width, length=length, **sizes)


# A builder, the rows of the batch, and the precision.
MODELS: dict[str, tuple[Callable[[], keras.Model], int, str]] = {
    "mlp": (mlp, 16384, "float32"),
    "mlp, wide": (lambda: mlp(6, 4096), 8192, "float32"),
    "mlp, wide, bfloat16": (lambda: mlp(6, 4096), 8192, "mixed_bfloat16"),
    "cnn": (cnn, 256, "float32"),
    "autoencoder": (autoencoder, 256, "float32"),
    "lstm, unrolled": (recurrent, 4096, "float32"),
    "tables": (tables, 8192, "float32"),
    "decoder": (decoder(4, 256, 256), 64, "float32"),
    "decoder, bfloat16": (decoder(4, 256, 256), 64, "mixed_bfloat16"),
    "decoder, recomputed": (decoder(4, 256, 256, remat=True), 64, "float32"),
    "decoder, 1,024 tokens": (decoder(4, 512, 1024), 16, "float32"),
    "decoder, llama": (decoder(4, 512, 512, groups=2, tied=False), 32, "float32"),
    "decoder, 12 blocks of 768": (decoder(12, 768, 512), 16, "mixed_bfloat16"),
    "vit": (vit, 256, "float32"),
    "bert (keras-hub)": (hub_bert, 64, "float32"),
    "bert": (lambda: planner_models.bert(6, 512, 8, 128, vocabulary=8192), 64, "mixed_bfloat16"),
    "ResNet50": (lambda: application("ResNet50"), 64, "float32"),
    "MobileNetV2": (lambda: application("MobileNetV2"), 64, "float32"),
    "EfficientNetB0": (lambda: application("EfficientNetB0"), 32, "float32"),
    "DenseNet121": (lambda: application("DenseNet121"), 32, "float32"),
    "VGG16": (lambda: application("VGG16"), 32, "float32"),
}


def build() -> keras.Model:
    """The model that PLANNER_TPU_MODEL names, for `tfaccel tpu check` of this file."""
    return MODELS[os.environ["PLANNER_TPU_MODEL"]][0]()


# --- One model --------------------------------------------------------------------------------


def one(name: str) -> None:
    """Plans and compiles a model, and prints a line for each topology."""
    from tfaccel.tpu.compiler import ENVIRONMENT

    os.environ.update(ENVIRONMENT)
    builder, batch, precision = MODELS[name]
    plans = planned(builder, batch, precision)
    for topology, compiler in seen(name, batch, precision):
        row = {"model": name, "topology": topology, "batch": batch, "precision": precision}
        print(json.dumps(row | plans[_devices(topology)] | compiler), flush=True)


def planned(builder: Callable[[], keras.Model], batch: int, precision: str) -> dict[int, Any]:
    """The plan of a device alone, and of one of four."""
    from tfaccel.planner import device_catalogue
    from tfaccel.planner.candidates import Candidate
    from tfaccel.planner.estimate import estimate
    from tfaccel.planner.models import Models

    models, devices = Models(builder, (batch // 4, batch)), device_catalogue.catalogue()
    found = {}
    for count in (1, 4):
        machines = device_catalogue.Machines(devices["v5e"], 1, count)
        plan = estimate(Candidate("tpu", count, 1, precision), batch, machines, models)
        state = plan.parameters + plan.slots + plan.other
        parts = {"gradients": plan.gradients, "activations": plan.activations,
                 "workspace": plan.workspace}  # fmt: skip
        found[count] = {"planned": plan.peak, "state": state, **parts}
    return found


def seen(name: str, batch: int, precision: str) -> Any:
    """The compiler's memory of a step on each topology."""
    from tfaccel.target import load
    from tfaccel.tpu import compiler, lower
    from tfaccel.tpu.topologies import parse

    os.environ["PLANNER_TPU_MODEL"] = name
    keras.config.set_dtype_policy(precision)
    lowered = lower.lower(load(f"{__file__}:build", None, "float32"), batch)
    for topology in TOPOLOGIES:
        try:
            got = compiler.compile_for(lowered, parse(topology))
        except compiler.TooBigError as error:
            yield topology, {"seen": error.needed, "temporaries": None}
            continue
        memory = got.memory
        yield topology, {
            "seen": memory.total, "peak": memory.peak, "arguments": memory.arguments,
            "temporaries": memory.temporaries, "code": memory.code, "seconds": got.seconds,
        }  # fmt: skip


def _devices(topology: str) -> int:
    from tfaccel.tpu.topologies import parse

    return parse(topology).devices


# --- All --------------------------------------------------------------------------------------


def report(only: str) -> None:
    """Prints a Markdown table of the models whose name holds `only`, each when it is compiled."""
    print(f"| model | batch | {' | '.join(TOPOLOGIES)} |", flush=True)
    print("| --- | --- |" + " --- |" * len(TOPOLOGIES))
    errors = []
    for name, (_, batch, _) in MODELS.items():
        if only not in name:
            continue
        rows = {row["topology"]: row for row in rows_of(name)}
        cells = [_cell(rows.get(topology)) for topology in TOPOLOGIES]
        print(f"| {name} | {batch:,} | {' | '.join(cells)} |", flush=True)
        errors += [abs(_error(row)) for row in rows.values()]
    if errors:
        within = sum(error <= 0.1 for error in errors)
        print(
            f"\n{len(errors)} cells: {within} within 10 %, "
            f"median {statistics.median(errors):.1%}, worst {max(errors):.1%}"
        )


def rows_of(name: str) -> list[dict[str, Any]]:
    """The lines of a process that plans and compiles a model; what it reported before it died."""
    done = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        print(f"{name}: ended with {done.returncode}: {last}", file=sys.stderr)
    print(done.stdout, file=sys.stderr, flush=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def _error(row: dict[str, Any]) -> float:
    return float(row["planned"] / row["seen"] - 1)


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    return f"{row['planned'] / MIB:,.0f} / {row['seen'] / MIB:,.0f} ({_error(row):+.0%})"


if __name__ == "__main__":
    one(sys.argv[1])
