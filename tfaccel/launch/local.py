"""Start the workers of a job as processes on this machine, and end them together."""

from __future__ import annotations

import itertools
import os
import shlex
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from tfaccel import hardware, onednn
from tfaccel.cluster import job_secret
from tfaccel.errors import LaunchError
from tfaccel.exit_codes import NO_PROGRESS, PREEMPTED
from tfaccel.launch import data_service, shell
from tfaccel.launch.data_service import DATA_WORKERS
from tfaccel.launch.environment import share_cores, worker_environment
from tfaccel.launch.failure import missing_workers
from tfaccel.launch.job import log_message, supervise
from tfaccel.launch.options import GRACE, Option, Options
from tfaccel.launch.ports import free_ports
from tfaccel.launch.profile import PROFILE
from tfaccel.launch.show import CHIEF, SHOW, Shown, shown_by
from tfaccel.launch.spec import START_TIMEOUT_S, Job

GRACE_S = 30.0
"""After SIGTERM a worker may save first; it leaves within this time (`tfaccel.checkpoint`)."""


def run(
    command: Sequence[str],
    *,
    nproc: int,
    min_nproc: int | None = None,
    env: Mapping[str, str] | None = None,
    log_dir: str | os.PathLike[str] | None = None,
    start_timeout_s: float = START_TIMEOUT_S,
    grace_s: float = GRACE_S,
    max_restarts: int = 0,
    show: str = CHIEF,
    data_workers: int = 0,
) -> int:
    """Runs one command as `nproc` workers, until all have ended or one has failed.

    Args:
        command: program and arguments, the same for all workers.
        nproc: the number of workers.
        min_nproc: the minimum: the job is started without those that fail before the rendezvous, or
            do not join within `start_timeout_s`; a restart tries all again. None: `nproc`.
        env: variables for the workers on top of this process's own. Where neither configures
            oneDNN, workers use it if the processor benefits.
        log_dir: a directory for `rank-N.log`, one per worker; files of earlier jobs are replaced.
        start_timeout_s: how long the workers wait for each other when they start, in seconds.
        grace_s: how long a worker may take to stop, in seconds.
        max_restarts: how often to start all workers again after one has failed. A script that
            fits with `tfaccel.checkpoint.resume` resumes where it was. A worker that ends with
            `exit_codes.PREEMPTED` leads to a restart that does not count.
        show: whose output is shown: `chief`, without TensorFlow's start-up messages unless
            `TF_CPP_MIN_LOG_LEVEL` is set; `all`; or ranks such as `0,3`. Of the others, warnings
            that no shown worker logs, and the last output of one that fails.
        data_workers: how many processes of a `tf.data` service compute rows for all workers
            (`tfaccel.distribute.data_service`). One that ends is started again.

    Returns:
        0 when all workers succeeded; else the exit code of the one that failed first (128 plus the
        signal's number when one killed it), or of the signal that ended this launcher;
        `exit_codes.PREEMPTED` when all workers had saved by then.

    Raises:
        LaunchError: the command cannot be started, or an argument is wrong.
    """
    if nproc < 1:
        raise LaunchError(f"--nproc is {nproc}; expected at least 1 worker")
    if min_nproc is not None and not 1 <= min_nproc <= nproc:
        raise LaunchError(f"min_nproc is {min_nproc}; expected 1 to {nproc}")
    if max_restarts < 0:
        raise LaunchError(f"--max-restarts is {max_restarts}; expected 0 or more")
    if not command:
        raise LaunchError("there is no command; expected a script or a program to run")
    shown = shown_by(show, nproc)
    environment = {**os.environ, **(env or {})}
    onednn.prefer(environment)
    beside = dict(environment)  # as many threads as a worker has, for bit-identical results
    share_cores(beside, nproc, hardware.cores())
    with data_service.running(data_workers, beside, log_dir) as service_env:
        base = {**environment, **service_env}
        return _run_tries(
            command,
            base,
            (min_nproc, nproc),
            log_dir,
            start_timeout_s=start_timeout_s,
            grace_s=grace_s,
            max_restarts=max_restarts,
            shown=shown,
        )


def _run_tries(
    command: Sequence[str],
    base: Mapping[str, str],
    numbers: tuple[int | None, int],
    log_dir: str | os.PathLike[str] | None,
    *,
    start_timeout_s: float,
    grace_s: float,
    max_restarts: int,
    shown: Shown,
) -> int:
    """Starts all workers, and restarts them as `run` describes."""
    min_nproc, nproc = numbers
    restarts, size = 0, nproc
    for attempt in itertools.count():
        logs = log_dir if log_dir is None or not attempt else Path(log_dir, f"restart-{attempt}")
        with tempfile.TemporaryDirectory(prefix="tfaccel-") as arrivals:
            environments = _environments(base, size, start_timeout_s, job_secret.new(), arrivals)
            end = supervise(command, environments, log_dir=logs, grace_s=grace_s, shown=shown)
            arrived = [int(name) for name in os.listdir(arrivals)]
        if end.code in (0, NO_PROGRESS) or end.signalled:
            break
        if end.code == PREEMPTED:
            size = nproc
            log_message(f"restarting all {size} workers: one was preempted and saved a checkpoint")
            continue
        missing = missing_workers(end.exits, arrived)
        if missing and min_nproc is not None and size - len(missing) >= min_nproc:
            size -= len(missing)
            names = ", ".join(map(str, missing))
            log_message(f"starting {size} workers: rank {names} did not connect to the others")
            continue
        if restarts == max_restarts:
            break
        restarts, size = restarts + 1, nproc
        # All of them: a single restarted worker would kill the others and wait for them.
        log_message(f"restarting all {size} workers (restart {restarts} of {max_restarts})")
    return end.code


def _environments(
    base: Mapping[str, str], nproc: int, start_timeout_s: float, secret: str, arrivals: str = ""
) -> list[dict[str, str]]:
    """The environment of each worker of a new job, on its own ports."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(nproc)]
    job_id = uuid.uuid4().hex
    return [
        worker_environment(
            base,
            workers=addresses,
            rank=rank,
            job_id=job_id,
            secret=secret,
            start_timeout_s=start_timeout_s,
            cores=hardware.cores(),
            arrivals=arrivals,
        )
        for rank in range(nproc)
    ]


# --- the engine --------------------------------------------------------------------------------

HELP = "processes of this machine (the default)"
OPTIONS: tuple[Option, ...] = (GRACE, SHOW, PROFILE, DATA_WORKERS)
SCRIPT_IS_LOCAL = True
COUNTS_WORKERS = True
TAKES_RANGES = True


def render(job: Job, options: Options) -> str:
    """The workers as shell lines, which create their secret; all ports are free now.

    What only a launcher does, such as restarts, is described in comments.
    """
    lines = [f"# {text}\n" for text in _notes(job)]
    lines += [f"export {job_secret.VARIABLE}={shell.NEW_SECRET}\n"]
    if job.log_dir is not None:
        lines.append(f"{shlex.join(['mkdir', '-p', job.log_dir])}\n")
    number = job.data_workers
    service, service_env = data_service.shell_lines(number, job.log_dir) if number else ([], {})
    lines += service
    base = {**dict(job.env), **service_env}
    onednn.prefer(base)
    shown = shown_by(CHIEF if job.show is None else job.show, job.workers)
    keep = ' workers="$workers $!"' if service else ""
    for rank, environment in enumerate(_environments(base, job.workers, job.start_timeout_s, "")):
        variables = [f"{name}={value}" for name, value in environment.items()]
        words = shlex.join(["env", *variables, *job.command()])
        lines.append(f"{words}{_redirection(job.log_dir, rank, shown)} &{keep}\n")
    lines.append("wait $workers; kill $data\n" if service else "wait\n")
    return "".join(lines)


def _notes(job: Job) -> list[str]:
    """What the launcher would do beyond these lines, one sentence each."""
    notes = []
    if job.max_restarts:
        notes.append(f"all workers are restarted up to {job.max_restarts} times after a failure")
    if job.max_restarts and job.log_dir is not None:
        notes.append(f"the logs of restarts are in {os.path.join(job.log_dir, 'restart-N')!r}")
    if job.min_workers is not None:
        notes.append(
            f"started with as few as {job.min_workers} workers where others have failed or not "
            f"connected within {job.start_timeout_s:g} s"
        )
    return notes


def _redirection(log_dir: str | None, rank: int, shown: Shown) -> str:
    """Where a worker's output goes: to its log, and to the terminal if it is shown."""
    if log_dir is None:
        return ""
    log = shlex.quote(os.path.join(log_dir, f"rank-{rank}.log"))
    return f" 2>&1 | tee {log}" if rank in shown else f" > {log} 2>&1"


def launch(job: Job, options: Options) -> int:
    """Runs the job here, as `run` does."""
    grace_s = options["grace"]
    return run(
        job.command(),
        nproc=job.workers,
        min_nproc=job.min_workers,
        env=dict(job.env),
        log_dir=job.log_dir,
        start_timeout_s=job.start_timeout_s,
        grace_s=GRACE_S if grace_s is None else grace_s,
        max_restarts=job.max_restarts,
        show=CHIEF if job.show is None else job.show,
        data_workers=job.data_workers,
    )
