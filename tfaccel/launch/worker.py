"""Runs one worker of a job started by an engine: its log, its signals and its exit code.

    python -m tfaccel.launch.worker --log-dir logs -- python train.py

Every line of the worker is written to ``logs/rank-N.log``, and printed here depending on
``--show``. With ``--data-workers`` it has a `tf.data` service of its own on this machine. With
``--hosts`` it also gets the cluster, for engines that cannot pass it otherwise.
"""

from __future__ import annotations

import argparse
import functools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, TextIO, TypeAlias

from tfaccel import cluster, signals
from tfaccel.errors import LaunchError, TfaccelError
from tfaccel.exit_codes import PREEMPTED
from tfaccel.launch import data_service, startup_messages
from tfaccel.launch.console import Console
from tfaccel.launch.environment import worker_environment
from tfaccel.launch.failure import Exit, output_tail
from tfaccel.launch.job import log_message
from tfaccel.launch.output import OutputForwarder, Terminal
from tfaccel.launch.process import Worker
from tfaccel.launch.show import CHIEF, Shown, shown_by
from tfaccel.launch.spec import START_TIMEOUT_S

SignalSource: TypeAlias = Callable[
    [Iterable[int], Callable[[signal.Signals], object]], AbstractContextManager[None]
]
_FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")


def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    rank: int,
    log_dir: str | os.PathLike[str] | None,
    shown: Shown,
    *,
    received: SignalSource = signals.received,
    data_workers: int = 0,
) -> Exit:
    """Runs a command to its end.

    Args:
        command: program and arguments.
        environment: all of its variables.
        rank: of this worker.
        log_dir: a directory for `rank-N.log`, to which it appends; or None.
        shown: whose output is shown. If this worker's is not, its warnings still are.
        received: calls a function with the signals that the command gets; by default those of this
            process, in the main thread.
        data_workers: how many processes of a `tf.data` service compute rows for this worker.

    Returns:
        How it ended.

    Raises:
        LaunchError: the command cannot be started, or the log cannot be written.
    """
    with data_service.running(data_workers, environment, log_dir, of_rank=rank) as variables:
        return _run(command, {**environment, **variables}, rank, log_dir, shown, received)


def _run(
    command: Sequence[str],
    environment: Mapping[str, str],
    rank: int,
    log_dir: str | os.PathLike[str] | None,
    shown: Shown,
    received: SignalSource,
) -> Exit:
    log = None if log_dir is None else _open_log(log_dir, rank)
    console = Console(shown, *(_plain(stream) for stream in (sys.stdout, sys.stderr)), hold_s=0.0)
    worker = Worker(command, rank, environment)
    numbers = [getattr(signal, name) for name in _FORWARDED]
    received_signals: list[signal.Signals] = []

    def receive(number: signal.Signals) -> None:
        received_signals.append(number)
        worker.send(number)

    try:
        with received(numbers, receive):
            pumps = [
                OutputForwarder(
                    pipe,
                    f"{rank}-{stream}",
                    functools.partial(console.show, rank, stream),
                    log,
                    show_startup=shown.ranks is None or startup_messages.is_level_set(environment),
                )
                for stream, pipe in enumerate((worker.stdout, worker.stderr))
                if pipe is not None
            ]
            for pump in pumps:
                pump.start()
            worker.await_end()
            status = worker.reap()
            for pump in pumps:
                pump.join(2.0)  # a child that it left behind may hold the pipe
            output, errors = (pump.last_lines for pump in pumps)
            hidden = () if rank in shown else output
            return Exit(
                rank, worker.pid, status, time.time(), errors, bool(received_signals), hidden
            )
    finally:
        worker.close()
        console.close()
        if log is not None:
            log.close()


def _plain(stream: TextIO) -> Terminal:
    return Terminal(stream, terminal=False, colour=False)


def _log_path(log_dir: str | os.PathLike[str], rank: int) -> Path:
    return Path(log_dir, f"rank-{rank}.log")


def _open_log(log_dir: str | os.PathLike[str], rank: int) -> IO[bytes]:
    path = _log_path(log_dir, rank)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "ab")
    except OSError as error:
        raise LaunchError(
            f"cannot write {str(path)!r} ({error.strerror}); expected --log-dir to be a directory "
            "that can be written to, on a disk that all workers share"
        ) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the worker that these arguments describe.

    Returns:
        Its exit code.
    """
    parser = argparse.ArgumentParser(prog="python -m tfaccel.launch.worker", allow_abbrev=False)
    parser.add_argument("--log-dir", metavar="D", help="directory for rank-N.log")
    parser.add_argument(
        "--show", default=CHIEF, metavar="WHO", help="all, chief, or ranks such as 0,3"
    )
    parser.add_argument("--hosts", help="hosts of all workers, in rank order, separated by blanks")
    parser.add_argument("--rank", type=int, help="index of this host in --hosts")
    parser.add_argument("--port", type=int, default=2222, help="port of the workers (%(default)d)")
    parser.add_argument("--job-id", default="", help="unique name of the job")
    parser.add_argument(
        "--data-workers", type=int, default=0, metavar="N", help="processes that compute rows"
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    options = parser.parse_args(argv)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    try:
        environment, rank = _environment(options, parser)
        shown = shown_by(options.show)
        ended = run(
            command,
            environment,
            rank,
            options.log_dir,
            shown,
            data_workers=options.data_workers,
        )
    except TfaccelError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    if ended.failed and ended.code != PREEMPTED and rank not in shown:
        log = "" if options.log_dir is None else str(_log_path(options.log_dir, rank))
        first = f"rank {rank} failed: {ended.description} (pid {ended.pid})"
        log_message("\n".join([first, *output_tail(ended, log)]))
    return ended.code


def _environment(
    options: argparse.Namespace, parser: argparse.ArgumentParser
) -> tuple[dict[str, str], int]:
    """The worker's variables and its rank."""
    environment = dict(os.environ)
    if options.hosts is None:
        resolved = cluster.resolve(environment)
        return environment, resolved.rank if resolved is not None else 0
    hosts = options.hosts.split()
    if options.rank is None or not 0 <= options.rank < len(hosts):
        parser.error(f"--rank is {options.rank}; expected one of the {len(hosts)} hosts")
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
        secret="",
        start_timeout_s=float(environment.get("TFACCEL_START_TIMEOUT", START_TIMEOUT_S)),
    ), options.rank


if __name__ == "__main__":
    sys.exit(main())
