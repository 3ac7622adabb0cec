"""The description of a job, common to all engines."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

from tfaccel.errors import LaunchError
from tfaccel.launch.script_arguments import python_command

START_TIMEOUT_S = 300.0

_NAME_LENGTH = 40  # with an engine's suffix, a host name may have 63 characters
_NAME = re.compile(rf"[a-z]([-a-z0-9]{{0,{_NAME_LENGTH - 2}}}[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Job:
    """A script, and how many workers run it.

    Attributes:
        script: a .py file, a module or a program, and its arguments.
        module: whether the first word is a module's name.
        name: of the job, a DNS label.
        workers: how many run it.
        min_workers: the minimum to continue with where there are fewer; None for exactly `workers`.
        env: variables for each of them.
        log_dir: where each writes `rank-N.log`, or None.
        max_restarts: how often all of them are started again after a failure.
        start_timeout_s: how long they wait for each other, in seconds.
        data_workers: how many processes compute rows (`tfaccel.launch.data_service`).
        show: whose output is shown, as `tfaccel.launch.show.shown_by` reads it; None for the
            engine's default.
    """

    script: tuple[str, ...]
    module: bool = False
    name: str = "train"
    workers: int = 1
    min_workers: int | None = None
    env: tuple[tuple[str, str], ...] = ()
    log_dir: str | None = None
    max_restarts: int = 0
    start_timeout_s: float = START_TIMEOUT_S
    show: str | None = None
    data_workers: int = 0

    def command(self, python: str = sys.executable) -> list[str]:
        """The program and its arguments; scripts and modules are run by this Python.

        >>> Job(("train.py", "--lr=1")).command("python3")
        ['python3', 'train.py', '--lr=1']
        """
        return python_command(self.script, module=self.module, python=python)

    def logged_command(self, python: str = sys.executable) -> list[str]:
        """The command of one worker, which also writes its log and has data workers if requested.

        With none of these, nor a choice of shown output, it is the plain command.
        """
        if not self.needs_wrapper:
            return self.command(python)
        # Without a log or a choice, all output is shown, as it is without a wrapper.
        shows_all = self.log_dir is None and self.show is None
        job = replace(self, show="all") if shows_all else self
        return [*job.wrapper(python), "--", *self.command(python)]

    @property
    def needs_wrapper(self) -> bool:
        """Whether something runs around a worker's command."""
        return self.log_dir is not None or self.show is not None or bool(self.data_workers)

    def wrapper(self, python: str) -> list[str]:
        """The wrapper of a worker's command, up to the command itself."""
        logs = [] if self.log_dir is None else ["--log-dir", self.log_dir]
        show = [] if self.show is None else ["--show", self.show]
        data = ["--data-workers", str(self.data_workers)] if self.data_workers else []
        return [python, "-m", "tfaccel.launch.worker", *logs, *show, *data]

    def variables(self) -> dict[str, str]:
        """What each worker's environment gets with any engine.

        Raises:
            LaunchError: a name that a shell or a manifest cannot hold.
        """
        variables = {"PYTHONUNBUFFERED": "1", "TFACCEL_START_TIMEOUT": f"{self.start_timeout_s:g}"}
        for name, value in self.env:
            if not _VARIABLE.fullmatch(name):
                raise LaunchError(
                    f"--env sets {name!r}; expected a name of letters, digits and underscores, "
                    "such as OMP_NUM_THREADS=2"
                )
            variables[name] = value
        return variables


def numbers_of_workers(text: str) -> tuple[int | None, int]:
    """Parses ``--nproc``: a number, or a minimum and a maximum.

    Returns:
        The minimum, None where it is a single number; and the maximum.

    Raises:
        LaunchError: it is neither.

    >>> numbers_of_workers("4"), numbers_of_workers("2:4")
    ((None, 4), (2, 4))
    """
    least, colon, most = text.rpartition(":")
    for number in (least, most) if colon else (most,):
        if not re.fullmatch(r"[+-]?[0-9]+", number):
            raise LaunchError(f"--nproc is {text!r}; expected a number, or two such as 2:4")
        if int(number) < 1:
            raise LaunchError(f"--nproc is {text}; expected at least 1 worker")
    if colon and int(least) > int(most):
        raise LaunchError(f"--nproc is {text}; expected the fewest workers first")
    return (int(least) if colon else None), int(most)


def default_name(script: Sequence[str], module: bool = False) -> str:
    """A job's name, from what it runs.

    >>> default_name(["examples/language_model.py"]), default_name(["pkg.train"], module=True)
    ('language-model', 'train')
    """
    word = script[0].rpartition(".")[2] if module else PurePath(script[0]).stem
    name = re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-")
    name = name if name[:1].isalpha() else f"job-{name}"
    return name[:_NAME_LENGTH].strip("-")


def check_name(name: str, what: str = "--name") -> str:
    """The name, validated.

    Raises:
        LaunchError: it is not a DNS label (RFC 1123) that begins with a letter, as Services
            require.
    """
    if not _NAME.fullmatch(name):
        raise LaunchError(
            f"{what} is {name!r}; expected up to {_NAME_LENGTH} lower-case letters, digits and "
            "hyphens, a letter first and no hyphen last"
        )
    return name
