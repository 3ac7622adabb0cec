"""Runs one worker of a job that an engine has started: its log, its signals and its exit code.

    python -m tfaccel.launch.worker --log-dir logs -- python train.py

Every line of the worker is written here with its rank, and to ``logs/rank-N.log`` without it. With
``--hosts`` it also gets the cluster, for engines that tell us in ways of their own.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO

from tfaccel import cluster
from tfaccel.errors import LaunchError, TfaccelError
from tfaccel.launch.environment import worker_environment
from tfaccel.launch.output import OutputForwarder, Terminal
from tfaccel.launch.process import Worker
from tfaccel.launch.spec import START_TIMEOUT_S

_FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")


def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    rank: int,
    log_dir: str | os.PathLike[str] | None = None,
    *,
    forward_signals: bool = True,
) -> tuple[int, tuple[str, ...]]:
    """Runs a command to its end.

    Args:
        command: program and arguments.
        environment: all of its variables.
        rank: of this worker.
        log_dir: a directory for `rank-N.log`, to which it appends; or None.
        forward_signals: whether it gets the signals of this process; only in the main thread.

    Returns:
        Its exit code, 128 plus the signal's number when one killed it; and its last lines of
        stderr.

    Raises:
        LaunchError: the command cannot be started, or the log not be written.
    """
    log = None if log_dir is None else _open_log(log_dir, rank)
    worker = Worker(command, rank, environment)

    def forward(number: int, _: FrameType | None) -> None:
        worker.send(number)

    numbers = [getattr(signal, name) for name in _FORWARDED] if forward_signals else []
    before = {number: signal.signal(number, forward) for number in numbers}
    try:
        pumps = [
            OutputForwarder(pipe, rank, Terminal(screen, terminal=False, colour=False), log)
            for pipe, screen in ((worker.stdout, sys.stdout), (worker.stderr, sys.stderr))
            if pipe is not None
        ]
        for pump in pumps:
            pump.start()
        worker.await_end()
        status = worker.reap()
        for pump in pumps:
            pump.join(2.0)  # a child that it left behind may hold the pipe
        return (128 - status if status < 0 else status), pumps[-1].last_lines
    finally:
        worker.close()
        for number, handler in before.items():
            signal.signal(number, handler)
        if log is not None:
            log.close()


def _open_log(log_dir: str | os.PathLike[str], rank: int) -> IO[bytes]:
    path = Path(log_dir, f"rank-{rank}.log")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "ab")
    except OSError as error:
        raise LaunchError(
            f"cannot write {str(path)!r} ({error.strerror}); expected --log-dir to be a directory "
            "that can be written to, on a disk that all workers share"
        ) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the worker whose words these are.

    Returns:
        Its exit code.
    """
    parser = argparse.ArgumentParser(prog="python -m tfaccel.launch.worker", allow_abbrev=False)
    parser.add_argument("--log-dir", metavar="D", help="where to write rank-N.log")
    parser.add_argument("--hosts", help="of all workers, in rank order, with blanks between")
    parser.add_argument("--rank", type=int, help="which of the hosts this is")
    parser.add_argument("--port", type=int, default=2222, help="where they listen (%(default)d)")
    parser.add_argument("--job-id", default="", help="the same on all workers, and on no others")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    options = parser.parse_args(argv)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    try:
        environment, rank = _environment(options, parser)
        return run(command, environment, rank, options.log_dir)[0]
    except TfaccelError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2


def _environment(
    options: argparse.Namespace, parser: argparse.ArgumentParser
) -> tuple[dict[str, str], int]:
    """The worker's variables and its rank."""
    environment = dict(os.environ)
    if options.hosts is None:
        found = cluster.resolve(environment)
        return environment, found.rank if found is not None else 0
    hosts = options.hosts.split()
    if options.rank is None or not 0 <= options.rank < len(hosts):
        parser.error(f"--rank is {options.rank}, expected one of the {len(hosts)} hosts")
    if len(hosts) == 1:
        return environment, 0
    return worker_environment(
        environment,
        workers=[
            f"[{host}]:{options.port}" if ":" in host else f"{host}:{options.port}"
            for host in hosts
        ],
        rank=options.rank,
        job_id=options.job_id,
        start_timeout_s=float(environment.get("TFACCEL_START_TIMEOUT", START_TIMEOUT_S)),
    ), options.rank


if __name__ == "__main__":
    sys.exit(main())
