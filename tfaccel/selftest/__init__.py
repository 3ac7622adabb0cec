"""`tfaccel test`: trains under every strategy this machine can hold, and compares the numbers.

A tiny model is trained once on one device, then under each strategy on the same global batches;
loss and weights must agree, and all workers must hold bit-identical weights. Every case runs
in separate processes, because TensorFlow's logical devices are set once in a process. Logical
CPU devices stand in for accelerators.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfaccel.errors import LaunchError
from tfaccel.selftest.cases import CASES, Case, Trained, missing, verdict

if TYPE_CHECKING:
    from rich.console import Console

PASS, FAIL, UNAVAILABLE = "pass", "fail", "unavailable"
TIME_LIMIT_S = 180.0
_GRACE_S = 60.0  # the launcher gives its workers 30


@dataclass(frozen=True)
class CaseResult:
    """The verdict on one case.

    Attributes:
        name: the case's.
        status: ``"pass"``, ``"fail"`` or ``"unavailable"``.
        seconds: wall-clock time of its own training, start of the processes included.
        detail: why it failed or is unavailable; for a pass, the final loss.
    """

    name: str
    status: str
    seconds: float
    detail: str


def run(case: Case, time_limit_s: float = TIME_LIMIT_S) -> list[Trained]:
    """Trains a case's model in separate processes.

    Args:
        case: what to train.
        time_limit_s: seconds after which its processes are ended.

    Returns:
        What each worker ended with, in rank order.

    Raises:
        LaunchError: a worker failed or ran out of time; its output is in the message.
    """
    task = json.dumps(dataclasses.asdict(case))
    return [Trained(**result) for result in _results(task, case, time_limit_s)]


def _results(task: str, case: Case, time_limit_s: float) -> list[dict[str, Any]]:
    """The results of a case's workers, in rank order."""
    launch = [
        sys.executable,
        "-m",
        "tfaccel.cli",
        "launch",
        f"--nproc={case.workers}",
        "--show=all",
    ]
    with tempfile.TemporaryDirectory(prefix="tfaccel-test-") as folder:
        process = subprocess.Popen(
            [*launch, "-m", "--", "tfaccel.selftest.worker", folder, task],
            env=_environment(os.environ, case),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            output, _ = process.communicate(timeout=time_limit_s)
        except subprocess.TimeoutExpired:
            raise LaunchError(f"timeout after {time_limit_s:g} s\n{_stop(process)}") from None
        except BaseException:  # Ctrl-C, SIGTERM
            _stop(process)
            raise
        if process.returncode:
            raise LaunchError(f"exited with {process.returncode}\n{output}")
        files = [Path(folder, f"{rank}.json") for rank in range(case.workers)]
        return [json.loads(file.read_text()) for file in files]


def _stop(process: subprocess.Popen[str]) -> str:
    """Ends a launcher, which ends its workers; returns their output."""
    process.terminate()
    try:
        return process.communicate(timeout=_GRACE_S)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()[0]


def _environment(environ: Mapping[str, str], case: Case) -> dict[str, str]:
    """Our environment, without variables of another job."""
    environment = {
        k: v for k, v in environ.items() if k != "TF_CONFIG" and not k.startswith("TFACCEL_")
    }
    environment |= {"TF_CPP_MIN_LOG_LEVEL": "2", "NO_COLOR": "1", "TERM": "dumb"}
    # The child must find the package that this process runs, installed or not.
    root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environ.get("PYTHONPATH", "")]))
    if case.device_type == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = "-1"  # or every child takes the memory of all GPUs
    return environment


def case_results(
    cases: Sequence[Case] = CASES, time_limit_s: float = TIME_LIMIT_S
) -> Iterator[CaseResult]:
    """Tries cases one after the other, each outcome as soon as it is known."""
    accelerators = {"gpus": 0, "tpus": 0}
    if any(case.gpus or case.tpus for case in cases):
        accelerators = _results("look", Case("look", "", device_type="auto"), time_limit_s)[0]
    known: dict[str, list[Trained]] = {}
    for case in cases:
        if reason := missing(case, **accelerators):
            yield CaseResult(case.name, UNAVAILABLE, 0.0, reason)
            continue
        began = time.monotonic()
        try:
            reference = next(one for one in (*cases, *CASES) if one.name == case.reference)
            for one in (reference, case):
                if one.name not in known:
                    began = time.monotonic()
                    known[one.name] = run(one, time_limit_s)
            wrong = verdict(known[case.reference][0], known[case.name], case.rtol)
        except LaunchError as error:
            wrong = str(error)
        detail = wrong or f"loss {known[case.name][0].loss:.6f}"
        yield CaseResult(case.name, FAIL if wrong else PASS, time.monotonic() - began, detail)


def _show(console: Console, outcome: CaseResult) -> None:
    from rich.markup import escape

    style = {PASS: "green", FAIL: "bold red", UNAVAILABLE: "dim"}[outcome.status]
    seconds = "" if outcome.status == UNAVAILABLE else f"{outcome.seconds:5.1f} s"
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
        description="Trains a tiny model under every strategy this machine supports, and compares "
        "it with one device.",
    )
    names = [case.name for case in CASES]
    parser.add_argument("--json", action="store_true", help="print JSON in place of lines")
    parser.add_argument(
        "--only", action="append", choices=names, metavar="NAME", help=f"one of {', '.join(names)}"
    )
    parser.add_argument(
        "--timeout", type=float, default=TIME_LIMIT_S, help="seconds for each case (%(default)g)"
    )
    arguments = parser.parse_args(argv)
    # So that the workers are killed too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    cases = [case for case in CASES if arguments.only is None or case.name in arguments.only]
    results = []
    if arguments.json:
        results = list(case_results(cases, arguments.timeout))
        print(json.dumps([dataclasses.asdict(outcome) for outcome in results], indent=2))
    else:
        from rich.console import Console

        console = Console()
        with console.status("training a tiny model under each strategy"):
            for outcome in case_results(cases, arguments.timeout):
                _show(console, outcome)
                results.append(outcome)
    return 1 if any(outcome.status == FAIL for outcome in results) else 0
