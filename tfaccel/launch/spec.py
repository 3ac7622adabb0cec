"""What every engine is told about a job, whoever runs it."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from tfaccel.errors import LaunchError
from tfaccel.launch.command import python_command

START_TIMEOUT_S = 300.0

_NAME_LENGTH = 40  # with what an engine appends, a host's name may have 63 characters
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
        env: variables for each of them.
        log_dir: where each writes `rank-N.log`, or None.
        max_restarts: how often all of them are started again after a failure.
        start_timeout_s: how long they wait for each other, in seconds.
    """

    script: tuple[str, ...]
    module: bool = False
    name: str = "train"
    workers: int = 1
    env: tuple[tuple[str, str], ...] = ()
    log_dir: str | None = None
    max_restarts: int = 0
    start_timeout_s: float = START_TIMEOUT_S

    def command(self, python: str = sys.executable) -> list[str]:
        """The program and its arguments; scripts and modules are run by this Python.

        >>> Job(("train.py", "--lr=1")).command("python3")
        ['python3', 'train.py', '--lr=1']
        """
        return python_command(self.script, module=self.module, python=python)

    def logged_command(self, python: str = sys.executable) -> list[str]:
        """The command of one worker, which also writes its log where one is asked for."""
        if self.log_dir is None:
            return self.command(python)
        words = [python, "-m", "tfaccel.launch.worker", "--log-dir", self.log_dir, "--"]
        return [*words, *self.command(python)]

    def variables(self) -> dict[str, str]:
        """What each worker's environment gets, whatever the engine.

        Raises:
            LaunchError: a name that a shell or a manifest cannot hold.
        """
        made = {"PYTHONUNBUFFERED": "1", "TFACCEL_START_TIMEOUT": f"{self.start_timeout_s:g}"}
        for name, value in self.env:
            if not _VARIABLE.fullmatch(name):
                raise LaunchError(
                    f"--env sets {name!r}, expected a name of letters, digits and underscores, "
                    "such as OMP_NUM_THREADS=2"
                )
            made[name] = value
        return made


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
    """The name as it is.

    Raises:
        LaunchError: it is no DNS label (RFC 1123) that begins with a letter, as Services need it.
    """
    if not _NAME.fullmatch(name):
        raise LaunchError(
            f"{what} is {name!r}, expected up to {_NAME_LENGTH} lower-case letters, digits and "
            "hyphens, a letter first and no hyphen last"
        )
    return name
