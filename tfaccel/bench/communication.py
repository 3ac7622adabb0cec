"""`tfaccel bench communication`: how fast the workers it runs on can reduce gradients.

    tfaccel launch --nproc 2 -- tfaccel bench communication
    mpiexec -n 2 tfaccel bench communication --transports mpi

Run it where training will run, started as training will be: once on every worker.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence

from tfaccel.bench import step_time
from tfaccel.bench.measurements import Message, Transport
from tfaccel.cluster import mpiexec, resolve
from tfaccel.errors import ClusterError

_UNITS = {"": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}
_SIZES = "1KB,16KB,256KB,1MB,4MB,16MB,64MB,256MB"


def main(argv: Sequence[str]) -> int:
    """Measures every transport, and prints a table on worker 0.

    Args:
        argv: words of the command line.

    Returns:
        The exit code: 1 when no transport could be measured.

    Raises:
        ClusterError: this process is not one of several workers.
    """
    args = _parser().parse_args(argv)
    cluster = resolve(os.environ)
    if cluster is None or cluster.size < 2:
        raise ClusterError(
            "one worker has no other to communicate with; expected several; start it as "
            "`tfaccel launch --nproc 2 -- tfaccel bench communication`."
        )
    names = args.transports or _is_available(cluster.source, args.device_type)
    measured = [_measure(name, args, cluster.size) for name in names]
    if cluster.is_chief:
        if args.json:
            print(json.dumps([dataclasses.asdict(one) for one in measured], indent=1))
        else:
            _print(measured, args)
    return 0 if any(one.messages for one in measured) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tfaccel bench communication",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--transports", type=_names, help="mpi,ring,nccl; default: all available ones"
    )
    parser.add_argument("--device-type", default="cpu", choices=["cpu", "gpu"])
    parser.add_argument(
        "--sizes", type=_sizes, default=_sizes(_SIZES), help=f"message sizes ({_SIZES})"
    )
    parser.add_argument(
        "--parameters", type=float, help="number of float32 parameters of your model"
    )
    parser.add_argument("--model", help="your model, a .keras file, instead of --parameters")
    parser.add_argument(
        *("--batch-size", "--batch"), type=int, default=32, help="batch size for --model (32)"
    )
    parser.add_argument("--step-ms", type=float, help="step time on one device; default: measured")
    parser.add_argument(
        "--timeout", type=float, default=600, help="seconds for each transport (600)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _names(text: str) -> list[str]:
    names = text.split(",")
    if odd := [name for name in names if name not in ("mpi", "ring", "nccl")]:
        raise argparse.ArgumentTypeError(f"{odd[0]!r} is not a transport; use mpi, ring, nccl")
    return names


def _sizes(text: str) -> list[int]:
    """Sizes in bytes, the smallest first.

    >>> _sizes("1MB,4KB")
    [4096, 1048576]
    """
    matches = [re.fullmatch(r"(\d+)(|KB|MB|GB)", part.strip().upper()) for part in text.split(",")]
    sizes = sorted({int(m[1]) * _UNITS[m[2]] for m in matches if m is not None})
    if None in matches or len(sizes) < 2 or sizes[0] < 4:
        raise argparse.ArgumentTypeError(
            f"{text!r} cannot be read as sizes; give two or more, such as {_SIZES}"
        )
    return sizes


def _is_available(source: str, device_type: str) -> list[str]:
    names = ["mpi"] if importlib.util.find_spec("mpi4py") is not None else []
    if source != mpiexec.SOURCE:
        names.append("ring")
    return [*names, "nccl"] if device_type == "gpu" else names


def _measure(name: str, args: argparse.Namespace, workers: int) -> Transport:
    """Measures in a separate process: TensorFlow starts one server per process."""
    sizes = ",".join(map(str, args.sizes))
    command = [
        sys.executable,
        "-m",
        "tfaccel.bench.all_reduce_benchmark",
        name,
        args.device_type,
        sizes,
    ]
    try:
        # File descriptors that mpiexec left open are for that process.
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=args.timeout, close_fds=False
        )
    except subprocess.TimeoutExpired:
        return Transport(name, workers, error=f"timeout after {args.timeout:g} s")
    printed = re.search(r"^seconds (.*)$", done.stdout, re.MULTILINE)
    if done.returncode or printed is None:
        lines = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()
        return Transport(name, workers, error=lines[-1])
    seconds = json.loads(printed[1])
    return Transport(name, workers, tuple(map(Message, args.sizes, seconds)))


@dataclasses.dataclass(frozen=True)
class _UserModel:
    """The user's model: bytes of its gradients, and seconds of a step on one device."""

    gradients: float | None = None
    step_s: float | None = None


def _load_user_model(args: argparse.Namespace) -> _UserModel:
    step_s = None if args.step_ms is None else args.step_ms / 1e3
    if args.model is None:
        return _UserModel(None if args.parameters is None else 4 * args.parameters, step_s)
    model = step_time.load(args.model)
    if step_s is None:
        step_s = step_time.seconds(model, args.batch_size)
    return _UserModel(step_time.gradient_bytes(model), step_s)


def _print(measured: list[Transport], args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console = console if console.is_terminal else Console(width=100)
    best = max((t.bus_bandwidth(m) for t in measured for m in t.messages), default=1.0)
    for transport in measured:
        if transport.error:
            console.print(f"{transport.name}: not measured ({transport.error})", markup=False)
            continue
        table = Table(title=f"{transport.name}, {transport.workers} workers, float32")
        for heading in ("size", "ms", "GB/s from each"):
            table.add_column(heading, justify="right")
        table.add_column("")
        for message in transport.messages:
            bandwidth = transport.bus_bandwidth(message)
            bar = "█" * round(30 * bandwidth / best)
            ms, rate = f"{message.seconds * 1e3:.2f}", f"{bandwidth / 1e9:.3f}"
            table.add_row(_format_size(message.size), ms, rate, bar)
        console.print(table)
    user_model = _load_user_model(args)
    if args.model is not None and args.step_ms is None and user_model.step_s is not None:
        console.print(
            f"a step of {args.batch_size} rows takes {user_model.step_s * 1e3:.1f} ms alone, here"
        )
    for transport in measured:
        if transport.messages and user_model.gradients is not None:
            console.print(
                _wait_fraction(transport, user_model.gradients, user_model.step_s),
                markup=False,
                highlight=False,
            )


def _wait_fraction(transport: Transport, size: float, step_s: float | None) -> str:
    name, milliseconds = transport.name, transport.seconds(size) * 1e3
    line = f"{name}: {size / 1e6:.1f} MB of gradients take {milliseconds:.1f} ms"
    if step_s is None:
        return line
    return f"{line}, {transport.wait_fraction(size, step_s):.0%} of a step without overlap"


def _format_size(size: int) -> str:
    unit = next(u for u in ("GB", "MB", "KB", "") if size % _UNITS[u] == 0)
    return f"{size // _UNITS[unit]} {unit or 'bytes'}"
