"""Start the workers of a job as processes of this machine, and end them together."""

from __future__ import annotations

import itertools
import os
import shlex
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from tfaccel import hardware, onednn
from tfaccel.errors import LaunchError
from tfaccel.exit_codes import NO_PROGRESS, PREEMPTED
from tfaccel.launch.environment import worker_environment
from tfaccel.launch.job import log_message, supervise
from tfaccel.launch.options import GRACE, Option, Options
from tfaccel.launch.ports import free_ports
from tfaccel.launch.spec import START_TIMEOUT_S, Job

GRACE_S = 10.0


def run(
    command: Sequence[str],
    *,
    nproc: int,
    env: Mapping[str, str] | None = None,
    log_dir: str | os.PathLike[str] | None = None,
    start_timeout_s: float = START_TIMEOUT_S,
    grace_s: float = GRACE_S,
    max_restarts: int = 0,
) -> int:
    """Runs one command as `nproc` workers, until all have ended or one has failed.

    Args:
        command: program and arguments, the same for all workers.
        nproc: the number of workers.
        env: variables for the workers on top of this process's own. Where neither speaks of oneDNN,
            workers use it if the processor gains.
        log_dir: a directory for `rank-N.log`, one a worker; files of earlier jobs are replaced.
        start_timeout_s: how long the workers wait for each other when they start, in seconds.
        grace_s: how long a worker that was asked to stop may take, in seconds.
        max_restarts: how often to start all workers again after one has failed. A script that
            fits with `tfaccel.checkpoint.resume` goes on where it was. A worker that ends with
            `exit_codes.PREEMPTED` leads to a restart that does not count.

    Returns:
        0 when all workers ended well; else the exit code of the one that failed first (128 plus
        the signal's number when one killed it), or of the signal that ended this launcher;
        `exit_codes.PREEMPTED` when all workers had saved by then.

    Raises:
        LaunchError: the command cannot be started.
    """
    if nproc < 1:
        raise LaunchError(f"--nproc is {nproc}; expected at least 1 worker")
    if max_restarts < 0:
        raise LaunchError(f"--max-restarts is {max_restarts}; expected 0 or more")
    if not command:
        raise LaunchError("there is no command; expected a script or a program to run")
    restarts = 0
    for attempt in itertools.count():
        logs = log_dir if log_dir is None or not attempt else Path(log_dir, f"restart-{attempt}")
        base = {**os.environ, **(env or {})}
        onednn.prefer(base)
        environments = _environments(base, nproc, start_timeout_s)
        end = supervise(command, environments, log_dir=logs, grace_s=grace_s)
        if end.code in (0, NO_PROGRESS) or end.signalled:
            break
        if end.code == PREEMPTED:
            log_message(f"starting all {nproc} workers again: one was told to stop and has saved")
            continue
        if restarts == max_restarts:
            break
        restarts += 1
        # All of them: a worker that is started alone kills the others and waits for them.
        log_message(f"starting all {nproc} workers again (restart {restarts} of {max_restarts})")
    return end.code


def _environments(
    base: Mapping[str, str], nproc: int, start_timeout_s: float
) -> list[dict[str, str]]:
    """The environment of each worker of a new job, on ports of its own."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(nproc)]
    job_id = uuid.uuid4().hex
    return [
        worker_environment(
            base,
            workers=addresses,
            rank=rank,
            job_id=job_id,
            start_timeout_s=start_timeout_s,
            cores=hardware.cores(),
        )
        for rank in range(nproc)
    ]


# --- the engine --------------------------------------------------------------------------------

HELP = "processes of this machine (the default)"
OPTIONS: tuple[Option, ...] = (GRACE,)
SCRIPT_IS_HERE = True
COUNTS_WORKERS = True


def render(job: Job, options: Options) -> str:
    """The workers as lines of a shell; all ports are free now."""
    lines = []
    base = dict(job.env)
    onednn.prefer(base)
    for environment in _environments(base, job.workers, job.start_timeout_s):
        variables = [f"{name}={value}" for name, value in environment.items()]
        lines.append(f"{shlex.join(['env', *variables, *job.command()])} &\n")
    return "".join([*lines, "wait\n"])


def launch(job: Job, options: Options) -> int:
    """Runs the job here, as `run` does."""
    grace_s = options["grace"]
    return run(
        job.command(),
        nproc=job.workers,
        env=dict(job.env),
        log_dir=job.log_dir,
        start_timeout_s=job.start_timeout_s,
        grace_s=GRACE_S if grace_s is None else grace_s,
        max_restarts=job.max_restarts,
    )
