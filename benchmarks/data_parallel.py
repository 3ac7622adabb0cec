"""What a step costs when workers train together, beside PyTorch and TensorFlow on the same cores.

    python benchmarks/data_parallel.py [--models mlp,cnn,transformer] [--workers 1,2,4]
        [--link none|1gbit|200mbit] [--wire bfloat16,powersgd] [--torch-python PATH]
        [--rounds 3] [--steps 20] [--epochs 3] [--only tfaccel] [--oversubscribe] [--json]

Trains three models through plain `model.fit` with Adam: an MLP 784-2048-2048-10, a small CNN on
32x32x3 and a causal transformer (4 layers, d 256, sequence 128), at 64, 32 and 8 rows per worker.
Every worker is a process on a core of its own (with `--oversubscribe` they share the cores that are
there, and only ratios to peers mean something). Every column starts from the same weights and sees
the same global batches, in the same number of steps, so at one number of workers the losses of all
columns can be compared; a column with fewer bits on the wire shows there what they cost. (Keras and
PyTorch agree to four or five digits on the MLP and the CNN. On the transformer they part earlier: a
token that stands twice in a batch has two rows in the embedding's gradient, and Keras's Adam adds
their squares where PyTorch's squares their sum.)

The columns:

- "Keras alone" has no strategy and one worker: what `fit` under tfaccel costs besides (the ratio
  "to Keras alone" at one worker; it should stay below 1.02).
- "TensorFlow alone" is its MultiWorkerMirroredStrategy with its ring over gRPC, without tfaccel.
  Keras 3's `fit` fails under it, so it has a hand-written loop.
- "tfaccel auto", "tfaccel mpi" and "tfaccel ring" are `communication="auto"`, `"mpi"` and `"ring"`
  (the same ring of TensorFlow). `--gradient_compression` adds a column to "auto" for each of its
  values. An option that this installation refuses is "not here".
- "PyTorch DDP" is gloo with PyTorch's defaults, and "tuned" has what one finds when looking for
  speed: fused Adam, channels last, gradients that are views of the buckets. On shaped links DDP's
  bf16 hook comes too. `--torch-python` names an interpreter that has torch, else this one is used.

`--link` takes the workers apart, into network namespaces whose links carry 1 Gbit/s or 200 Mbit/s
each way (root, and iproute2). They are removed at the end, also after ctrl-C.

Milliseconds per step are the median over the timed epochs, one that is not timed first, of the
worst rank. Columns are gone through in rounds, and ratios are medians over rounds of two times from
the same round: below 1 is faster than that peer. Efficiency is the throughput, to that of the same
column's one worker times the number of workers.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
from dataclasses import asdict, dataclass
from typing import Any

from peers import links, processes
from peers.work import BATCH, Task, parameters


@dataclass(frozen=True)
class Column:
    """A library, and how its workers talk."""

    name: str
    library: str
    communication: str = ""
    wire: str = ""
    tuned: bool = False


ALONE = Column("Keras alone", "keras")
OWN = Column("TensorFlow alone", "tensorflow", "ring")
RING = Column("tfaccel ring", "tfaccel", "ring")
DDP = Column("PyTorch DDP", "torch", "gloo")
TUNED = Column("PyTorch DDP tuned", "torch", "gloo", tuned=True)
HOOK = Column("PyTorch DDP bf16 hook", "torch", "gloo", "bfloat16")
PEERS = (ALONE, OWN, RING, DDP, TUNED, HOOK)
_SHORT = {ALONE: "Keras", OWN: "TF", RING: "ring", DDP: "DDP", TUNED: "tuned", HOOK: "bf16"}

Key = tuple[str, int, Column]
Run = dict[str, Any]


def main() -> None:
    args = _arguments()
    # So that a plain kill also ends the workers and takes the links away.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    columns = _columns(args)
    runs: dict[Key, list[Run]] = {
        (model, workers, column): []
        for model in args.models
        for workers in args.workers
        for column in columns
        if workers == 1 or column is not ALONE
    }
    try:
        with links.places(args.link, max(args.workers)) as places:
            for round_ in range(args.rounds):
                for key, before in runs.items():
                    if not (before and "why" in before[0]):
                        before.append(_run(key, args, places))
                        print(f"round {round_ + 1}: {_summary(key, before[-1])}", file=sys.stderr)
    except links.LinkError as error:
        sys.exit(f"data_parallel: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    rows = [_row(key, runs) for key in runs]
    if args.json:
        print(json.dumps({"arguments": vars(args), "rows": rows}, indent=1))
    else:
        _print(rows, args)
    if any("failed" in row["why"] for row in rows):
        sys.exit(1)


def _arguments() -> argparse.Namespace:
    def some(kind: type, known: Any = None) -> Any:
        def parse(text: str) -> list[Any]:
            values = [kind(value.strip()) for value in text.split(",") if value.strip()]
            if not values or (known is not None and not set(values) <= set(known)):
                raise argparse.ArgumentTypeError(f"{text!r}; expected some of {', '.join(known)}")
            return values

        return parse

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=some(str, BATCH), default=list(BATCH))
    parser.add_argument("--workers", type=some(int), default=[1, 2, 4])
    parser.add_argument("--link", choices=links.RATES, default="none")
    parser.add_argument("--wire", type=some(str), default=[], help="more columns of tfaccel")
    parser.add_argument("--only", type=some(str), help="columns whose name holds one of these")
    parser.add_argument("--torch-python", default=sys.executable, metavar="PATH")
    parser.add_argument("--steps", type=int, default=20, help="of an epoch")
    parser.add_argument("--epochs", type=int, default=3, help="timed, after one that is not")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--oversubscribe", action="store_true", help="more workers than cores")
    parser.add_argument("--limit", type=float, default=900, help="seconds for a column's workers")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    if min(args.workers) < 1 or (max(args.workers) > cores and not args.oversubscribe):
        parser.error(
            f"--workers is {args.workers}; there are {cores} cores, one for each (--oversubscribe)"
        )
    return args


def _columns(args: argparse.Namespace) -> list[Column]:
    columns = [
        ALONE,
        Column("tfaccel auto", "tfaccel", "auto"),
        Column("tfaccel mpi", "tfaccel", "mpi"),
        *(Column(f"tfaccel auto, {wire}", "tfaccel", "auto", wire) for wire in args.wire),
        RING,
        OWN,
    ]
    if processes.has(args.torch_python, "torch"):
        columns += [DDP, TUNED, *([HOOK] if args.link != "none" else [])]
    elif args.torch_python != sys.executable:
        sys.exit(f"data_parallel: --torch-python {args.torch_python} cannot import torch")
    if args.only:
        columns = [c for c in columns if any(o.lower() in c.name.lower() for o in args.only)]
    if not columns:
        sys.exit(
            f"data_parallel: no column has a name that holds {' or '.join(args.only)} "
            "(PyTorch's are there when --torch-python can import torch)"
        )
    return columns


def _run(key: Key, args: argparse.Namespace, places: list[links.Place]) -> Run:
    """Measures one column once; what kept it from being measured is its "why"."""
    model, workers, column = key
    cores = sorted(os.sched_getaffinity(0))
    given = {name: value for name, value in asdict(column).items() if name != "name"}
    tasks = [
        Task(
            model, **given, workers=workers, rank=rank, core=cores[rank % len(cores)],
            steps=args.steps, epochs=args.epochs,
        )
        for rank in range(workers)
    ]  # fmt: skip
    python = args.torch_python if column.library == "torch" else sys.executable
    try:
        ranks = processes.run(tasks, places, python, args.limit)
    except processes.WorkerError as error:
        return {"why": f"failed: {error}"}
    refused = [rank["refused"] for rank in ranks if "refused" in rank]
    if refused:
        return {"why": f"not here: {refused[0]}"}
    counts = {rank["parameters"] for rank in ranks}
    if counts != {parameters(model)}:
        return {"why": f"failed: it has {counts} parameters; expected {parameters(model)}"}
    ms = max(statistics.median(rank["ms"]) for rank in ranks)
    return {**ranks[0], "ms": ms, "examples_per_s": tasks[0].global_batch / ms * 1e3}


def _summary(key: Key, run: Run) -> str:
    return f"{key[0]} x{key[1]} {key[2].name}: " + (run.get("why") or f"{run['ms']:.1f} ms/step")


def _row(key: Key, runs: dict[Key, list[Run]]) -> dict[str, Any]:
    model, workers, column = key
    named = {"model": model, "workers": workers, **asdict(column)}
    own = runs[key]
    for run in own:
        if "why" in run:
            return {**named, "why": run["why"]}

    def against(workers: int, column: Column, name: str) -> float | None:
        """The median over rounds of tfaccel's value to another column's in the same round."""
        other = runs.get((model, workers, column), [])
        pairs = [(a[name], b[name]) for a, b in zip(own, other, strict=False) if "why" not in b]
        return statistics.median(a / b for a, b in pairs) if pairs else None

    faster = against(1, column, "examples_per_s")
    times = [run["ms"] for run in own]
    return {
        **named,
        "why": "",
        "ms": {"min": min(times), "median": statistics.median(times), "max": max(times)},
        "examples_per_s": statistics.median(run["examples_per_s"] for run in own),
        "efficiency": None if faster is None else faster / workers,
        "to": {peer.name: against(workers, peer, "ms") for peer in PEERS if peer != column},
        "loss": own[-1]["loss"],
        "parameters": own[-1]["parameters"],
        "versions": own[-1]["versions"],
    }


def _print(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    peers = [p for p in PEERS if any(row.get("to", {}).get(p.name) for row in rows)]
    console = Console()
    console = console if console.is_terminal else Console(width=160)
    for model in args.models:
        own = [row for row in rows if row["model"] == model]
        table = Table(
            title=f"{model}, {parameters(model):,} parameters, {BATCH[model]} rows per worker, "
            f"link {args.link}"
        )
        table.add_column("workers", justify="right")
        table.add_column("column", no_wrap=True)
        ratios = [f"to {_SHORT[p]}" for p in peers]
        for heading in (
            "ms/step", "(min - max)", "examples/s", "efficiency", *ratios, "last loss",
        ):  # fmt: skip
            table.add_column(heading, justify="right")
        for row in own:
            if row["why"]:
                table.add_row(str(row["workers"]), row["name"], row["why"].partition(":")[0])
                continue
            ms = row["ms"]
            table.add_row(
                str(row["workers"]),
                row["name"],
                f"{ms['median']:.1f}",
                f"{ms['min']:.1f} - {ms['max']:.1f}",
                f"{row['examples_per_s']:.0f}",
                _ratio(row["efficiency"]),
                *(_ratio(row["to"].get(p.name)) for p in peers),
                f"{row['loss']:.5f}",
            )
        console.print(table)


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()
