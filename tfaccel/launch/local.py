"""Start the workers of a job as processes of this machine, and end them together."""

from __future__ import annotations

import argparse
import os
import uuid
from collections.abc import Mapping, Sequence

from tfaccel.errors import LaunchError
from tfaccel.launch.command import add_command, command_of, variable
from tfaccel.launch.environment import worker_environment
from tfaccel.launch.job import supervise
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
) -> int:
    """Runs one command as `nproc` workers, until all have ended or one has failed.

    Args:
        command: program and arguments, the same for all workers.
        nproc: the number of workers.
        env: variables for the workers on top of this process's own.
        log_dir: a directory for `rank-N.log`, one a worker; files of earlier jobs are replaced.
        start_timeout_s: how long the workers wait for each other when they start, in seconds.
        grace_s: how long a worker that was asked to stop may take, in seconds.

    Returns:
        0 when all workers ended well; else the exit code of the one that failed first (128 plus
        the signal's number when one killed it), or of the signal that ended this launcher.

    Raises:
        LaunchError: the command cannot be started.
    """
    if nproc < 1:
        raise LaunchError(f"--nproc is {nproc}; expected at least 1 worker")
    if not command:
        raise LaunchError("there is no command; expected a script or a program to run")
    base = {**os.environ, **(env or {})}
    addresses = [f"127.0.0.1:{port}" for port in free_ports(nproc)]
    job_id = uuid.uuid4().hex
    environments = [
        worker_environment(
            base,
            workers=addresses,
            rank=rank,
            job_id=job_id,
            start_timeout_s=start_timeout_s,
            cores=_cores(),
        )
        for rank in range(nproc)
    ]
    return supervise(command, environments, log_dir=log_dir, grace_s=grace_s)


def _cores() -> int:
    """The cores that this process may use, which need not be all of the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
    )
