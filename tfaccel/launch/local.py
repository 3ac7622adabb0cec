"""Start the workers of a job as processes of this machine, and end them together."""

from __future__ import annotations

import argparse
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from tfaccel import hardware, onednn
from tfaccel.errors import LaunchError
from tfaccel.launch.command import add_command, command_of, variable
from tfaccel.launch.environment import worker_environment
from tfaccel.launch.job import log_message, supervise
from tfaccel.launch.ports import free_ports

START_TIMEOUT_S = 300.0
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
            fits with `tfaccel.checkpoint.resume` goes on where it was.

    Returns:
        0 when all workers ended well; else the exit code of the one that failed first (128 plus
        the signal's number when one killed it), or of the signal that ended this launcher.

    Raises:
        LaunchError: the command cannot be started.
    """
    if nproc < 1:
        raise LaunchError(f"--nproc is {nproc}; expected at least 1 worker")
    if max_restarts < 0:
        raise LaunchError(f"--max-restarts is {max_restarts}; expected 0 or more")
    if not command:
        raise LaunchError("there is no command; expected a script or a program to run")
    for attempt in range(max_restarts + 1):
        logs = log_dir if log_dir is None or not attempt else Path(log_dir, f"restart-{attempt}")
        base = {**os.environ, **(env or {})}
        onednn.prefer(base)
        environments = _environments(base, nproc, start_timeout_s)
        end = supervise(command, environments, log_dir=logs, grace_s=grace_s)
        if end.code == 0 or end.signalled or attempt == max_restarts:
            break
        # All of them: a worker that is started alone kills the others and waits for them.
        log_message(f"starting all {nproc} workers again (restart {attempt + 1} of {max_restarts})")
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


def main(argv: Sequence[str]) -> int:
    """The command `tfaccel launch`."""
    parser = argparse.ArgumentParser(
        prog="tfaccel launch",
        description="Start the workers of a job on this machine, and end them together.",
        allow_abbrev=False,
    )
    parser.add_argument("--nproc", type=int, required=True, help="the number of workers")
    parser.add_argument(
        "--start-timeout",
        type=float,
        default=START_TIMEOUT_S,
        metavar="S",
        help="how long the workers wait for each other, in seconds (%(default)g)",
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=GRACE_S,
        metavar="S",
        help="how long a worker that is asked to stop may take, in seconds (%(default)g)",
    )
    parser.add_argument(
        "--max-restarts",
        type=int,
        default=0,
        metavar="N",
        help="how often to start all workers again after one has failed (%(default)d)",
    )
    parser.add_argument("--log-dir", metavar="D", help="also write D/rank-N.log, one a worker")
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        type=variable,
        metavar="K=V",
        help="set a variable for the workers; may be given again",
    )
    add_command(parser)
    options = parser.parse_args(argv)
    return run(
        command_of(parser, options),
        nproc=options.nproc,
        env=dict(options.env),
        log_dir=options.log_dir,
        start_timeout_s=options.start_timeout,
        grace_s=options.grace,
        max_restarts=options.max_restarts,
    )
