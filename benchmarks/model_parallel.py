"""What a step of a language model costs on each mesh, beside Keras's JAX backend on the same ones.

    python benchmarks/model_parallel.py [--rounds 3] [--steps 10] [--json]

Trains one transformer through plain `model.fit`. Every column is a process of its own, one after
the other, and the columns are gone through for several rounds. Logical devices share the cores of
one machine, so this shows what a mesh costs and not what it gains. The global batch is the same
everywhere; TensorFlow's columns start from the same weights and end with the same loss. Columns
of JAX are there when it can be imported.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from tfaccel import onednn


@dataclass(frozen=True)
class Column:
    """A backend, and the devices it is given."""

    name: str
    backend: str = "tensorflow"
    strategy: str | None = None
    batch: int = 1
    model: int = 1
    layouts: str = "auto"


COLUMNS = (
    Column("one device"),
    Column("mirrored x4", strategy="mirrored", batch=4),
    *(
        Column(f"model_parallel {b}x{m}", strategy="model_parallel", batch=b, model=m)
        for b, m in ((4, 1), (2, 2), (1, 4))
    ),
    Column("fully sharded 4x1", strategy="model_parallel", batch=4, layouts="fully_sharded"),
    Column("JAX one device", "jax"),
    *(Column(f"JAX {b}x{m}", "jax", "ModelParallel", b, m) for b, m in ((4, 1), (2, 2), (1, 4))),
    Column("JAX fully sharded 4x1", "jax", "ModelParallel", 4, layouts="fully_sharded"),
)

# The layouts that tfaccel gives this model, as rules of keras.distribution.
JAX_RULES = {
    ".*embedding.*/embeddings": ("model", None),
    ".*(query|key|value)/kernel": (None, "model", None),
    ".*(query|key|value)/bias": ("model", None),
    ".*attention_output/kernel": ("model", None, None),
    ".*(up|head)/kernel": (None, "model"),
    ".*(up|head)/bias": ("model",),
    ".*down/kernel": ("model", None),
}
JAX_FULLY_SHARDED = {
    ".*(gamma|beta)": ("batch",),
    ".*(up|down|head|attention_output)/bias": ("batch",),
    ".*(query|key|value)/bias": ("batch", None),
    ".*embeddings": ("batch", None),
    ".*(up|down|head)/kernel": ("batch", None),
    ".*(query|key|value|attention_output)/kernel": ("batch", None, None),
}


def main() -> None:
    args = _arguments()
    if args.column is not None:
        print(json.dumps(measure(COLUMNS[args.column], args)))
        return
    has_jax = importlib.util.find_spec("jax") is not None
    columns = [i for i, c in enumerate(COLUMNS) if has_jax or c.backend != "jax"]
    if args.only:
        columns = [i for i in columns if args.only in COLUMNS[i].name or i == 0]
    runs: dict[int, list[dict[str, Any]]] = {i: [] for i in columns}
    for round_ in range(args.rounds):
        for i in columns:
            runs[i].append(_run(i))
            line = f"round {round_ + 1}: {COLUMNS[i].name} {runs[i][-1]['ms']:.1f} ms/step"
            print(line, file=sys.stderr, flush=True)
    rows = [_row(COLUMNS[i], runs, columns) for i in columns]
    if args.json:
        print(json.dumps({"arguments": vars(args), "rows": rows}, indent=1))
    else:
        _print(rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--sequence", type=int, default=128)
    parser.add_argument("--vocabulary", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=8, help="rows, of the global batch")
    parser.add_argument("--steps", type=int, default=10, help="of an epoch")
    parser.add_argument("--epochs", type=int, default=3, help="timed, after one that is not")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="columns whose name holds this, and the first")
    parser.add_argument("--jit-compile", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--column", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def _run(index: int) -> dict[str, Any]:
    """Measures one column in a separate process."""
    column = COLUMNS[index]
    env = {**os.environ, "KERAS_BACKEND": column.backend}
    onednn.prefer(env)
    if column.backend == "jax":
        flags = f"{env.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count="
        env["XLA_FLAGS"] = flags + str(column.batch * column.model)
        env["JAX_PLATFORMS"] = "cpu"
    command = [sys.executable, __file__, *sys.argv[1:], "--column", str(index)]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True, text=True)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


# --- In the process of a column -------------------------------------------------------------


def measure(column: Column, args: argparse.Namespace) -> dict[str, Any]:
    import keras
    import numpy as np
    from epochs import StepTime

    scope = _scope(column)
    keras.utils.set_random_seed(0)
    with scope:
        model = build(args)
        model.compile(
            keras.optimizers.Adam(1e-3),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=args.jit_compile or column.backend == "jax",
        )
    rng = np.random.default_rng(0)
    shape = (args.steps * args.batch, args.sequence + 1)
    tokens = rng.integers(0, args.vocabulary, shape).astype("int32")
    timer = StepTime(args.steps)
    fitted = model.fit(
        tokens[:, :-1], tokens[:, 1:], args.batch, args.epochs + 1, 0, [timer], shuffle=False
    )
    held, whole = _bytes(model, column)
    return {
        "ms": statistics.median(timer.ms),
        "loss": fitted.history["loss"][-1],
        "bytes_per_device": held,
        "bytes_whole": whole,
    }


def build(args: argparse.Namespace) -> Any:
    """A causal transformer of keras.layers."""
    import keras
    from keras import layers

    width = args.width
    tokens = keras.Input((args.sequence,), dtype="int32")
    x = layers.Embedding(args.vocabulary, width, name="embedding")(tokens)
    for i in range(args.layers):
        near = layers.LayerNormalization(name=f"near_{i}")(x)
        attend = layers.MultiHeadAttention(args.heads, width // args.heads, name=f"attend_{i}")
        x = layers.Add()([x, attend(near, near, use_causal_mask=True)])
        near = layers.LayerNormalization(name=f"near_mlp_{i}")(x)
        near = layers.Dense(4 * width, "gelu", name=f"{i}_up")(near)
        x = layers.Add()([x, layers.Dense(width, name=f"{i}_down")(near)])
    x = layers.LayerNormalization(name="near_head")(x)
    return keras.Model(tokens, layers.Dense(args.vocabulary, name="head")(x))


def _scope(column: Column) -> Any:
    if column.backend == "jax":
        return _jax_scope(column)
    import tfaccel

    if column.strategy is None:
        return contextlib.nullcontext()
    if column.strategy == "mirrored":
        return tfaccel.strategy("mirrored", devices=column.batch, device_type="cpu").scope()
    return tfaccel.strategy(
        "model_parallel",
        mesh={"batch": column.batch, "model": column.model},
        layouts=column.layouts,
        device_type="cpu",
    ).scope()


def _jax_scope(column: Column) -> Any:
    import keras

    if column.strategy is None:
        return contextlib.nullcontext()
    devices = keras.distribution.list_devices()
    shape = (column.batch, column.model)
    mesh = keras.distribution.DeviceMesh(shape, ("batch", "model"), devices)
    rules = keras.distribution.LayoutMap(mesh)
    sharded = column.layouts == "fully_sharded"
    for path, axes in (JAX_FULLY_SHARDED if sharded else JAX_RULES).items():
        rules[path] = axes
    # For the whole process: fit reads it outside a scope.
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(layout_map=rules, batch_dim_name="batch")
    )
    return contextlib.nullcontext()


def _bytes(model: Any, column: Column) -> tuple[int, int]:
    """Bytes of parameters and slots that one device holds, and on one device alone."""
    if column.backend == "tensorflow":
        from tfaccel.placement.report import report

        totals = {total.kind: total for total in report(model).totals}
        counted = [totals["parameters"], totals["optimizer"]]
        return sum(t.bytes_per_device for t in counted), sum(t.bytes_whole for t in counted)
    values = [v.value for v in (*model.weights, *model.optimizer.variables)]
    return sum(v.addressable_shards[0].data.nbytes for v in values), sum(v.nbytes for v in values)


# --- The table ------------------------------------------------------------------------------


def _row(
    column: Column, runs: dict[int, list[dict[str, Any]]], columns: list[int]
) -> dict[str, Any]:
    own = runs[COLUMNS.index(column)]

    def against(same: Callable[[Column], bool]) -> float | None:
        """The median over rounds of tfaccel's time to that of another column in the same round."""
        other = next((runs[i] for i in columns if same(COLUMNS[i])), None)
        if other is None:
            return None
        return statistics.median(a["ms"] / b["ms"] for a, b in zip(own, other, strict=True))

    times = [run["ms"] for run in own]
    return {
        **asdict(column),
        "ms": {"min": min(times), "median": statistics.median(times), "max": max(times)},
        "to_one_device": against(lambda c: (c.backend, c.strategy) == (column.backend, None)),
        "to_jax": against(
            lambda c: (
                (c.backend, c.batch, c.model, c.layouts)
                == ("jax", column.batch, column.model, column.layouts)
            )
        ),
        "bytes_per_device": own[-1]["bytes_per_device"],
        "fraction": own[-1]["bytes_per_device"] / own[-1]["bytes_whole"],
        "loss": own[-1]["loss"],
    }


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column("column")
    for heading in (
        "ms/step, median", "(min - max)", "to one device", "to JAX", "MB per device", "share",
        "last loss",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    for row in rows:
        ms, to_one, to_jax = row["ms"], row["to_one_device"], row["to_jax"]
        table.add_row(
            row["name"],
            f"{ms['median']:.1f}",
            f"{ms['min']:.1f} - {ms['max']:.1f}",
            "-" if to_one is None else f"{to_one:.2f}",
            "-" if to_jax is None else f"{to_jax:.2f}",
            f"{row['bytes_per_device'] / 1e6:.2f}",
            f"{row['fraction']:.3f}",
            f"{row['loss']:.6f}",
        )
    console = Console()
    console = console if console.is_terminal else Console(width=120)
    console.print(table)


if __name__ == "__main__":
    main()
