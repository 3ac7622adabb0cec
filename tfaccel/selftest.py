"""`tfaccel test`: trains under every strategy this machine can hold, and compares the numbers.

A tiny model is trained once on one device, then under each strategy on the same global batches;
loss and weights must agree, and all workers must hold the same weights to the bit. Every case runs
in processes of its own, because TensorFlow's logical devices are set once in a process. Logical
CPU devices stand in for accelerators.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfaccel.errors import LaunchError

if TYPE_CHECKING:
    from rich.console import Console

PASS, FAIL, NOT_HERE = "pass", "fail", "not here"
TIME_LIMIT = 180.0

_RESULT = "tfaccel-selftest-result "


@dataclass(frozen=True)
class Case:
    """One strategy to try.

    Attributes:
        name: what `--only` takes.
        strategy: the strategy's name.
        device_type: the kind of device it runs on.
        devices: how many of them a worker uses; None for the strategy's own choice.
        workers: how many processes.
        gpus: GPUs that must be here.
        tpus: TPU cores that must be here.
        reference: the case whose numbers it must reach.
        rtol: how close, relative.
    """

    name: str
    strategy: str
    device_type: str = "cpu"
    devices: int | None = None
    workers: int = 1
    gpus: int = 0
    tpus: int = 0
    reference: str = "one_device"
    rtol: float = 1e-4


# GPUs are compared with one GPU, since they multiply matrices in TF32. A TPU has bfloat16 there
# and no strategy for one core of it, hence its tolerance.
CASES = (
    Case("one_device", "one_device"),
    Case("mirrored-2-cpus", "mirrored", devices=2),
    Case("multi_worker_mirrored-2-workers", "multi_worker_mirrored", devices=1, workers=2),
    Case("one_device-gpu", "one_device", "gpu", gpus=1, reference="one_device-gpu"),
    Case("mirrored-gpus", "mirrored", "gpu", gpus=2, reference="one_device-gpu"),
    Case("tpu", "tpu", "tpu", tpus=1, rtol=1e-2),
)


@dataclass(frozen=True)
class Trained:
    """What one worker has when training ends.

    Attributes:
        loss: the last epoch's.
        checksum: a sum over all weights that depends on their values and their order.
        digest: a hash of the weights' bits.
    """

    loss: float
    checksum: float
    digest: str


@dataclass(frozen=True)
class Outcome:
    """The verdict on one case.

    Attributes:
        name: the case's.
        status: ``"pass"``, ``"fail"`` or ``"not here"``.
        seconds: wall-clock time of its own training, start of the processes included.
        detail: why it failed or is not here; for a pass, how close the loss came.
    """

    name: str
    status: str
    seconds: float
    detail: str


def missing(case: Case, gpus: int, tpus: int) -> str:
    """Why this machine cannot hold a case; ``""`` if it can.

    >>> missing(Case("mirrored-gpus", "mirrored", gpus=2), gpus=1, tpus=0)
    'GPUs needed: 2, found: 1'
    """
    if case.gpus > gpus:
        return f"GPUs needed: {case.gpus}, found: {gpus}"
    if case.tpus > tpus:
        return f"TPU cores needed: {case.tpus}, found: {tpus}"
    return ""


def verdict(reference: Trained, workers: Sequence[Trained], rtol: float = 1e-4) -> str:
    """What differs between one device and the workers of a case; ``""`` when nothing does.

    >>> one, other = Trained(0.5, 9.0, "a"), Trained(0.6, 9.0, "a")
    >>> verdict(one, [other])
    'loss is 0.6, on one device 0.5'
    """
    if len({worker.digest for worker in workers}) > 1:
        return "the workers ended with different weights"
    for what in ("loss", "checksum"):
        expected, found = getattr(reference, what), getattr(workers[0], what)
        if not math.isclose(expected, found, rel_tol=rtol):
            where = "loss" if what == "loss" else "the weights' checksum"
            return f"{where} is {found:.7g}, on one device {expected:.7g}"
    return ""


def run(case: Case, time_limit: float = TIME_LIMIT) -> list[Trained]:
    """Trains a case's model in processes of its own.

    Args:
        case: what to train.
        time_limit: seconds after which its processes are ended.

    Returns:
        What each worker ended with, in rank order.

    Raises:
        LaunchError: a worker failed or ran out of time; its output is in the message.
    """
    outputs = _children("train", json.dumps(dataclasses.asdict(case)), case, time_limit)
    return [Trained(**output) for output in outputs]


def _children(task: str, argument: str, case: Case, time_limit: float) -> list[dict[str, Any]]:
    """Runs this module in `case.workers` processes; the result that each one printed."""
    addresses = _free_addresses(case.workers) if case.workers > 1 else []
    command = [sys.executable, "-m", "tfaccel.selftest", "--child", task, argument]
    deadline = time.monotonic() + time_limit
    with contextlib.ExitStack() as stack:
        started = []
        for rank in range(case.workers):
            log = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))
            environ = _environment(os.environ, case, addresses, rank)
            process = subprocess.Popen(
                command,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            stack.callback(_end, process)
            started.append((process, log))
        while any(process.poll() is None for process, _ in started):
            late = time.monotonic() > deadline
            if late or any(process.poll() for process, _ in started):
                break
            time.sleep(0.05)
        codes = [process.poll() for process, _ in started]
        texts = []
        for _, log in started:
            log.seek(0)
            texts.append(log.read())
    results = []
    # The first to fail tells why; the others were ended with it.
    for rank in sorted(range(case.workers), key=lambda rank: codes[rank] in (0, None)):
        if codes[rank] is None:
            raise LaunchError(f"worker {rank} was not done after {time_limit:g} s\n{texts[rank]}")
        if codes[rank]:
            raise LaunchError(f"worker {rank} exited with {codes[rank]}\n{texts[rank]}")
    for text in texts:
        lines = [line for line in text.splitlines() if line.startswith(_RESULT)]
        if not lines:
            raise LaunchError(f"a worker printed no result\n{text}")
        results.append(json.loads(lines[-1].removeprefix(_RESULT)))
    return results


def _environment(
    environ: Mapping[str, str], case: Case, addresses: Sequence[str], rank: int
) -> dict[str, str]:
    """The environment of one worker: ours, without what describes another job."""
    ours = {
        name: value
        for name, value in environ.items()
        if name != "TF_CONFIG" and not name.startswith("TFACCEL_")
    }
    ours["TF_CPP_MIN_LOG_LEVEL"] = "2"
    # The child must find the package that this process runs, installed or not.
    root = str(Path(__file__).resolve().parents[1])
    ours["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environ.get("PYTHONPATH", "")]))
    if case.device_type == "cpu":
        ours["CUDA_VISIBLE_DEVICES"] = "-1"  # else every child takes the memory of all GPUs
    if addresses:
        ours["TF_CONFIG"] = json.dumps(
            {"cluster": {"worker": list(addresses)}, "task": {"type": "worker", "index": rank}}
        )
    return ours


def _free_addresses(count: int) -> list[str]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a worker and all it started. SIGKILL: TensorFlow swallows SIGTERM."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# --- In the child ---------------------------------------------------------------------------


def train(case: Case) -> Trained:
    """Trains the tiny model under a case's strategy, in this process."""
    import numpy as np

    import tfaccel

    options = {"devices": case.devices} if case.devices else {}
    strategy = tfaccel.strategy(case.strategy, device_type=case.device_type, seed=1, **options)
    import keras

    generator = np.random.default_rng(0)
    x = generator.normal(size=(64, 8)).astype("float32")
    y = (x[:, 0] > x[:, 1]).astype("int32")
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((8,)),
                keras.layers.Dense(16, activation="tanh"),
                keras.layers.LayerNormalization(),
                keras.layers.Dense(2),
            ]
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(1e-2), loss)
    history = model.fit(x, y, batch_size=16, epochs=3, shuffle=False, verbose=0)
    flat = np.concatenate([np.ravel(weight) for weight in model.get_weights()])
    order = 1.0 + np.arange(flat.size) % 13
    return Trained(
        loss=float(history.history["loss"][-1]),
        checksum=float(np.sum(np.abs(flat.astype("float64")) * order)),
        digest=hashlib.sha256(flat.tobytes()).hexdigest(),
    )


def _look() -> dict[str, int]:
    """How many accelerators there are. In a child, so that this one does not hold them."""
    from tfaccel import hardware

    found = hardware.detect()
    return {"gpus": hardware.count(found, "GPU"), "tpus": hardware.count(found, "TPU")}


def _child(task: str, argument: str) -> int:
    result: Any = _look() if task == "look" else dataclasses.asdict(train(_case(argument)))
    print("\n" + _RESULT + json.dumps(result), flush=True)
    return 0


def _case(text: str) -> Case:
    return Case(**json.loads(text))


# --- The command ----------------------------------------------------------------------------


def outcomes(cases: Sequence[Case] = CASES, time_limit: float = TIME_LIMIT) -> Iterator[Outcome]:
    """Tries cases one after the other, each outcome as soon as it is known."""
    here = {"gpus": 0, "tpus": 0}
    if any(case.gpus or case.tpus for case in cases):
        look = Case("look", "", device_type="auto")
        here = _children("look", "", look, time_limit)[0]
    known: dict[str, list[Trained]] = {}
    for case in cases:
        began = time.monotonic()
        if reason := missing(case, **here):
            yield Outcome(case.name, NOT_HERE, 0.0, reason)
            continue
        try:
            for name in (case.reference, case.name):
                if name not in known:
                    began = time.monotonic()
                    known[name] = run(_named(name), time_limit)
            wrong = verdict(known[case.reference][0], known[case.name], case.rtol)
        except LaunchError as error:
            wrong = str(error)
        detail = wrong or f"loss {known[case.name][0].loss:.6f}"
        yield Outcome(case.name, FAIL if wrong else PASS, time.monotonic() - began, detail)


def _named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def _show(console: Console, outcome: Outcome) -> None:
    from rich.markup import escape

    style = {PASS: "green", FAIL: "bold red", NOT_HERE: "dim"}[outcome.status]
    seconds = "" if outcome.status == NOT_HERE else f"{outcome.seconds:5.1f} s"
    console.print(
        f"[{style}]{outcome.status:<8}[/] {outcome.name:<32}{seconds:>8}  {escape(outcome.detail)}",
        highlight=False,
        soft_wrap=True,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `tfaccel test`.

    Args:
        argv: the arguments after `test`; the process's own when None.

    Returns:
        The exit code: 1 when any case fails, else 0.
    """
    parser = argparse.ArgumentParser(
        prog="tfaccel test",
        description="Trains a tiny model under every strategy this machine can hold, and compares "
        "it with one device.",
    )
    names = [case.name for case in CASES]
    parser.add_argument("--json", action="store_true", help="print JSON in place of lines")
    parser.add_argument(
        "--only", action="append", choices=names, metavar="NAME", help=f"one of {', '.join(names)}"
    )
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument(
        "--time-limit", type=float, default=TIME_LIMIT, help="seconds for each (%(default)g)"
    )
    arguments = parser.parse_args(argv)
    if arguments.child:
        return _child(*arguments.child)
    # So that the children are ended too: they are sessions of their own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    cases = [case for case in CASES if arguments.only is None or case.name in arguments.only]
    found = []
    if arguments.json:
        found = list(outcomes(cases, arguments.time_limit))
        print(json.dumps([dataclasses.asdict(outcome) for outcome in found], indent=2))
    else:
        from rich.console import Console

        console = Console()
        with console.status("training a tiny model under each strategy"):
            for outcome in outcomes(cases, arguments.time_limit):
                _show(console, outcome)
                found.append(outcome)
    return 1 if any(outcome.status == FAIL for outcome in found) else 0


if __name__ == "__main__":
    sys.exit(main())
