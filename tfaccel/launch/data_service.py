"""`--data-workers`: a `tf.data` service on one machine, next to the workers of a job.

The `local` engine starts one for all of its workers. Elsewhere each worker gets one of its own, on
its own machine (`worker.py`): a part of a batch is computed for one worker alone.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tfaccel.errors import LaunchError
from tfaccel.launch.failure import Exit
from tfaccel.launch.job import log_message
from tfaccel.launch.options import Option, count
from tfaccel.launch.output import Line, OutputForwarder
from tfaccel.launch.ports import free_ports
from tfaccel.launch.process import Worker

DATA_WORKERS = Option(
    "--data-workers",
    "processes that compute rows of tf.data pipelines; with another engine than local, as many "
    "beside each worker (0)",
    "N",
    type=count,
)

_ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "-1", "PYTHONUNBUFFERED": "1"}
AGAIN_S = 1.0
TRIES = 3
"""A process that ends this often within `SOON_S` of its start is not started again."""
SOON_S = 10.0


@contextlib.contextmanager
def running(
    number: int,
    env: Mapping[str, str],
    log_dir: str | os.PathLike[str] | None,
    of_rank: int | None = None,
) -> Iterator[dict[str, str]]:
    """Runs a dispatcher and its workers, each of which is started again when it ends.

    Args:
        number: of workers; 0 starts nothing.
        env: their environment. They see no GPU.
        log_dir: a directory for `data-worker-N.log`, or None.
        of_rank: the only worker that uses it, which its logs are named after; None for all.

    Yields:
        The environment variables of a job's workers.

    Raises:
        LaunchError: the logs cannot be written.
    """
    if not number:
        yield {}
        return
    words = _words(number)
    env = {**env, **_ENVIRONMENT}
    with contextlib.ExitStack() as stack:
        for name, arguments in zip(_names(number, of_rank), words, strict=True):
            stack.enter_context(_Kept(name, arguments, env, log_dir))
        yield _told(words)


def shell_lines(number: int, log_dir: str | None) -> tuple[list[str], dict[str, str]]:
    """The same as shell lines, which keep the process ids in ``$data``; and the variables."""
    words = _words(number)
    variables = [f"{name}={value}" for name, value in _ENVIRONMENT.items()]
    lines = []
    for name, each in zip(_names(number), words, strict=True):
        log = "" if log_dir is None else f" > {shlex.quote(_log_file(log_dir, name))} 2>&1"
        command = shlex.join(["env", *variables, *_command(each)])
        lines.append(f'{command}{log} & data="$data $!"\n')
    return lines, _told(words)


def _names(number: int, of_rank: int | None = None) -> list[str]:
    owner = "" if of_rank is None else f"rank {of_rank} "
    return [f"{owner}data dispatcher", *(f"{owner}data worker {n}" for n in range(number))]


def _log_file(log_dir: str | os.PathLike[str], name: str) -> str:
    return os.path.join(log_dir, f"{name.replace(' ', '-')}.log")


def _words(number: int) -> list[list[str]]:
    dispatcher, *ports = map(str, free_ports(number + 1))
    return [[dispatcher], *([port, dispatcher] for port in ports)]


def _command(words: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "tfaccel.launch.data_worker", *words]


def _told(words: Sequence[Sequence[str]]) -> dict[str, str]:
    return {"TFACCEL_DATA_SERVICE": f"127.0.0.1:{words[0][0]}"}


class _Kept:
    """A process of the service, which runs until it is no longer needed."""

    def __init__(
        self,
        name: str,
        words: list[str],
        env: Mapping[str, str],
        log_dir: str | os.PathLike[str] | None,
    ) -> None:
        self._name = name
        self._command = _command(words)
        self._env = env
        self._log_dir = log_dir
        self._over = threading.Event()
        self._process: Worker | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=f"tfaccel {name}", daemon=True)

    def __enter__(self) -> _Kept:
        if self._log_dir is not None:
            self._log = Path(_log_file(self._log_dir, self._name))
            try:
                self._log.parent.mkdir(parents=True, exist_ok=True)
                self._log.write_bytes(b"")
            except OSError as error:
                raise LaunchError(
                    f"cannot write logs to {os.fspath(self._log_dir)!r} ({error.strerror}); "
                    "expected a directory that can be written to"
                ) from error
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        with self._lock:
            if self._process is not None:
                self._process.close()
        self._thread.join()

    def _run(self) -> None:
        soon = 0
        while not self._over.is_set():
            began = time.monotonic()
            ended = self._once()
            if ended is None or self._over.is_set():
                return
            soon = soon + 1 if time.monotonic() - began < SOON_S else 0
            if soon == TRIES:
                log_message(
                    f"{self._name} has ended {TRIES} times ({ended.description}) and is not "
                    "restarted; the workers compute its rows"
                )
                return
            log_message(f"{self._name} has ended ({ended.description}), and is restarted")
            self._over.wait(AGAIN_S)

    def _once(self) -> Exit | None:
        """Runs it until it ends; None where it is no longer needed."""
        with self._lock:
            if self._over.is_set():
                return None
            self._process = process = Worker(self._command, 0, self._env)
        with contextlib.ExitStack() as stack:
            log = None if self._log_dir is None else stack.enter_context(open(self._log, "ab"))
            pipes = [pipe for pipe in (process.stdout, process.stderr) if pipe is not None]
            pumps = [OutputForwarder(pipe, self._name, _drop, log) for pipe in pipes]
            for pump in pumps:
                pump.start()
            process.await_end()
            with self._lock:
                status = process.reap()
            for pump in pumps:
                pump.join(1.0)
        return Exit(0, process.pid, status, time.monotonic())


def _drop(line: Line) -> None:
    """The output of these is not shown; the log has it."""
