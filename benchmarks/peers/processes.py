"""The workers of one column, as processes: started together, and ended together."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from peers.links import Place
from peers.work import Task
from tfaccel import onednn
from tfaccel.launch.environment import worker_environment
from tfaccel.launch.ports import free_ports

_SHOWN_LINES = 12  # lines of a worker that failed


class WorkerError(RuntimeError):
    """A worker failed, or took too long."""


def run(
    tasks: Sequence[Task], places: Sequence[Place], python: str, limit_s: float
) -> list[dict[str, Any]]:
    """The result of every worker, in rank order.

    Raises:
        WorkerError: one of them failed, or they took longer than `limit_s` seconds.
    """
    ports = free_ports(len(tasks))
    workers = [f"{place.address}:{port}" for place, port in zip(places, ports, strict=False)]
    job_id = uuid.uuid4().hex
    script = str(Path(__file__).with_name("worker.py"))
    started: list[subprocess.Popen[str]] = []
    with contextlib.ExitStack() as files:
        outputs: list[tuple[IO[str], IO[str]]] = []
        try:
            for task, place in zip(tasks, places, strict=False):
                env = _environment(task, place, workers, job_id)
                command = [*place.prefix, python, script, json.dumps(asdict(task))]
                out = files.enter_context(tempfile.TemporaryFile("w+"))
                err = files.enter_context(tempfile.TemporaryFile("w+"))
                outputs.append((out, err))
                # A session of its own, so that what a worker starts can be ended with it.
                started.append(
                    subprocess.Popen(
                        command, env=env, stdout=out, stderr=err, text=True, start_new_session=True
                    )
                )
            _wait(started, [err for _, err in outputs], limit_s)
            return [json.loads(_lines(out)[-1]) for out, _ in outputs]
        finally:
            for process in started:
                _end(process)


def _environment(task: Task, place: Place, workers: list[str], job_id: str) -> dict[str, str]:
    base = {"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ, **place.env, "OMP_NUM_THREADS": "1"}
    onednn.prefer(base)  # for every column, so that they differ in their strategy alone
    if task.library == "keras":
        base.pop("TF_CONFIG", None)
        return base
    if task.library == "torch":
        host, _, port = workers[0].rpartition(":")
        return {**base, "MASTER_ADDR": host, "MASTER_PORT": port}
    return worker_environment(
        base,
        workers=workers,
        rank=task.rank,
        job_id=job_id,
        secret=job_id,  # a number that cannot be guessed
        start_timeout_s=120,
    )


def _wait(started: list[subprocess.Popen[str]], errors: list[IO[str]], limit_s: float) -> None:
    """Returns when all have ended well; the first that fails represents all."""
    end = time.monotonic() + limit_s
    while True:
        codes = [process.poll() for process in started]
        for rank, code in enumerate(codes):
            if code:
                output = "\n".join(_lines(errors[rank])[-_SHOWN_LINES:])
                raise WorkerError(f"worker {rank} ended with {code}:\n{output}")
        if all(code == 0 for code in codes):
            return
        if time.monotonic() > end:
            late = [rank for rank, code in enumerate(codes) if code is None]
            raise WorkerError(f"workers {late} were still at it after {limit_s:g} s (--limit)")
        time.sleep(0.1)


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _lines(file: IO[str]) -> list[str]:
    file.seek(0)
    return file.read().splitlines()


def has(python: str, module: str) -> bool:
    """Whether an interpreter can import a module."""
    command = [
        python,
        "-c",
        f"import importlib.util as u, sys; sys.exit(not u.find_spec({module!r}))",
    ]
    try:
        return not subprocess.run(command, check=False, capture_output=True).returncode
    except OSError:
        return False
