"""What training costs on one GPU: Keras, tfaccel, Keras on JAX and PyTorch, in one run.

    python benchmarks/gpu.py --budget 240 --out gpu.jsonl
    python benchmarks/gpu.py --models gpt2 --ways keras,tfaccel,keras-xla,tfaccel-xla
    python benchmarks/gpu.py --device cpu --tiny        # tries everything without a GPU

Trains ResNet-50 (224x224, batch 256) and a decoder of the size of GPT-2 small (sequence 1,024,
batch 16) in bfloat16 with AdamW, each way in a separate process with a time limit: through
`model.fit` with Keras alone and under tfaccel's strategies, with XLA and without, with Keras on
JAX, and in PyTorch with `torch.compile`. Every way gets the same one batch again and again, from
the host's memory (PyTorch: on the GPU), so that reading data is not what is measured. The first
steps, which compile, are not timed; of the timed rounds the median counts.

Images or tokens per second, the part of the card's peak (MFU) and the largest memory in use are
written to `--out` as lines of JSON as they come, and printed as a table at the end. What is not
installed, or has no time left, is named. `jit_compile` is set for every model: by itself Keras
takes XLA on one GPU, and does not under a strategy of several.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from one_gpu.cuda import environment
from one_gpu.process import Process
from one_gpu.task import SIZES, Task, flops_per_unit, peak_tflops
from rich.console import Console
from rich.table import Table

# In the order in which they run: what matters most comes first.
WAYS: dict[str, dict[str, Any]] = {
    "keras-xla": {"xla": "jit"},
    "tfaccel-xla": {"strategy": "one_device", "xla": "jit"},
    "jax": {"library": "jax", "xla": "jit"},
    "torch": {"library": "torch", "xla": "jit"},
    "keras": {},
    "tfaccel": {"strategy": "one_device"},
    "mirrored": {"strategy": "mirrored"},
    "fused": {"fused": True},
    "prefetched": {"data": "device"},
    "pinned": {"data": "pinned"},
    "clusters": {"strategy": "one_device", "xla": "clusters"},
    "torch-eager": {"library": "torch"},
}
NAMES = {
    "keras": "Keras, no XLA",
    "tfaccel": "tfaccel one_device, no XLA",
    "keras-xla": "Keras, XLA",
    "tfaccel-xla": "tfaccel one_device, XLA",
    "jax": "Keras on JAX",
    "torch": "PyTorch, torch.compile",
    "mirrored": "tfaccel mirrored on 1 GPU",
    "fused": "Keras, Adam in one operation",
    "prefetched": "Keras, batches prefetched to the GPU",
    "pinned": "Keras, host memory pinned",
    "clusters": "tfaccel one_device, xla=True (clusters)",
    "torch-eager": "PyTorch",
}
# In pairs: a way, and what it is compared with.
RATIOS = (
    ("tfaccel", "keras"),
    ("tfaccel-xla", "keras-xla"),
    ("tfaccel-xla", "jax"),
    ("keras-xla", "keras"),
    ("tfaccel-xla", "torch"),
    ("mirrored", "keras"),
    ("fused", "keras"),
    ("prefetched", "keras"),
    ("pinned", "keras"),
    ("clusters", "keras"),
)


def tasks(args: argparse.Namespace) -> list[Task]:
    """What to run, in order: every model in a way before the next way."""
    common = {"device": args.device, "tiny": args.tiny, "batch": args.batch}
    common |= {"steps": args.steps, "rounds": args.rounds, "warm": args.warm}
    return [
        Task(model, way, **{**common, **WAYS[way]})
        for way in args.ways.split(",")
        for model in args.models.split(",")
    ]


def measured(task: Task, found: dict[str, Any]) -> dict[str, Any]:
    """A line of the results: what a process found, and what follows from it."""
    line = {**asdict(task), "batch": task.sizes.batch, "unit": task.unit, **found}
    losses = [r["loss"] for r in found["rounds"]]
    if losses:
        ms = statistics.median(r["step_time_ms"] for r in found["rounds"])
        rate = task.units / ms * 1e3
        tflops = rate * flops_per_unit(task) / 1e12
        peak = peak_tflops(found.get("card", ""))
        line |= {"step_time_ms": ms, "per_second": rate, "tflops": tflops, "last_loss": losses[-1]}
        line |= {"mfu": tflops / peak if peak else None}
        line |= {"finite": all(abs(loss) < float("inf") for loss in losses)}
    return line


def run(args: argparse.Namespace, write: Any, console: Console) -> list[dict[str, Any]]:
    """Runs the tasks one after the other; each makes itself ready while the one before trains."""
    end = time.monotonic() + args.budget
    cache = Path(os.environ.get("CUDA_CACHE_PATH", tempfile.gettempdir())) / "tfaccel-benchmark"
    cache.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = []
    todo, ready = tasks(args), None
    while todo or ready is not None:
        process, ready = ready or start(todo, args, cache, lines, write), None
        if process is None:
            break
        left = end - time.monotonic()
        if left < args.least:
            process.end()
            todo.insert(0, process.task)
            break
        if args.device == "gpu" and left > 2 * args.least:
            ready = start(todo, args, cache, lines, write)
        line = measured(process.task, process.go(min(args.limit, left)))
        lines.append(line)
        write(line)
        console.print(summary(line), markup=False, highlight=False)
    for task in todo:
        write({**asdict(task), "status": "skipped", "error": f"--budget {args.budget:g} is spent"})
        console.print(f"{task.model} {task.way}: no time left", markup=False, highlight=False)
    return lines


def start(
    todo: list[Task], args: argparse.Namespace, cache: Path, lines: list[Any], write: Any
) -> Process | None:
    """Starts the next task that can run here; those that cannot are written down."""
    while todo:
        task = todo.pop(0)
        if importlib.util.find_spec(task.library) is None:
            line = {**asdict(task), "status": "skipped", "rounds": []}
            line["error"] = f"{task.library} is not installed"
            lines.append(line)
            write(line)
            continue
        if task.device == "cpu" and (task.xla == "clusters" or task.data != "host"):
            write({**asdict(task), "status": "skipped", "error": "needs a GPU"})
            continue
        return Process(task, environment(task.library, task.device, cache, os.environ))
    return None


def summary(line: dict[str, Any]) -> str:
    """A line for people, as it comes."""
    name = f"{line['model']} {line['way']}"
    if "per_second" not in line:
        return f"{name}: {line['status']}: {line.get('error', '')[-700:]}"
    rate = f"{line['per_second']:,.0f} {line['unit']}/s, {line['step_time_ms']:.2f} ms/step"
    late = "" if line["status"] == "ok" else f" ({line['status']} after {len(line['rounds'])})"
    loss = f"loss {line.get('first_loss', 0):.3f} to {line['last_loss']:.3f}"
    took = f"warm-up {line.get('warm_s') or 0:.0f} s, in all {line.get('train_s') or 0:.0f} s"
    return f"{name}: {rate}{late}; {loss}; {took}"


def tables(lines: list[dict[str, Any]]) -> list[Table]:
    """What was measured, and the ratios."""
    card = next((line["card"] for line in lines if line.get("card")), "")
    table = Table(*("model", "way", "per second", "ms/step", "MFU", "peak GiB", "loss"), title=card)
    for line in sorted(lines, key=lambda line: line["model"], reverse=True):
        row = [line["model"], NAMES[line["way"]]]
        if "per_second" not in line:
            table.add_row(*row, line["status"])
            continue
        mfu, peak = line.get("mfu"), line.get("peak_gib")
        row += [f"{line['per_second']:,.0f} {line['unit']}", f"{line['step_time_ms']:.2f}"]
        row += [f"{mfu:.1%}" if mfu else "-", f"{peak:.1f}" if peak else "-"]
        table.add_row(*row, f"{line.get('first_loss', 0):.2f} → {line['last_loss']:.2f}")
    rates = {(x["model"], x["way"]): x["per_second"] for x in lines if "per_second" in x}
    ratios = Table("model", "way", "against", "speed")
    for model in SIZES:
        for way, other in RATIOS:
            if (model, way) in rates and (model, other) in rates:
                speed = rates[model, way] / rates[model, other]
                ratios.add_row(model, NAMES[way], NAMES[other], f"{speed:.3f}")
    return [table, ratios]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", default="resnet50,gpt2")
    parser.add_argument("--ways", default=",".join(WAYS), help="some of the ways, in order")
    parser.add_argument("--device", default="gpu", choices=("gpu", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="small models: does it run?")
    parser.add_argument("--batch", type=int, default=0, help="rows of a step, for every model")
    parser.add_argument("--steps", type=int, default=Task.steps, help="of each timed round")
    parser.add_argument("--rounds", type=int, default=Task.rounds)
    parser.add_argument("--warm", type=int, default=Task.warm, help="steps before those")
    parser.add_argument("--budget", type=float, default=3600, help="seconds, all in all")
    parser.add_argument("--limit", type=float, default=150, help="seconds for each process")
    parser.add_argument("--least", type=float, default=20, help="seconds worth to start one with")
    parser.add_argument("--out", help="a file for lines of JSON")
    args = parser.parse_args()
    for name, known in (("models", SIZES), ("ways", WAYS)):
        for value in getattr(args, name).split(","):
            if value not in known:
                parser.error(f"--{name} has {value!r}; expected some of {','.join(known)}")

    def write(line: dict[str, Any]) -> None:
        if args.out:
            with open(args.out, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    console = Console(width=None if os.isatty(1) else 120)
    lines = run(args, write, console)
    console.print(*tables([line for line in lines if line.get("rounds")]))
    if not any("per_second" in line for line in lines):
        raise SystemExit("nothing could be measured; see above")


if __name__ == "__main__":
    main()
