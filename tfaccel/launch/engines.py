"""The engines that start a job, by name; each is a module of this package."""

from __future__ import annotations

from typing import Protocol

from tfaccel.launch import kubernetes, local, ray, skypilot, slurm, tpu_vm
from tfaccel.launch.options import Option, Options
from tfaccel.launch.spec import Job


class Engine(Protocol):
    """The contents of an engine's module."""

    HELP: str
    """A short description."""

    OPTIONS: tuple[Option, ...]
    """Its own options."""

    SCRIPT_IS_LOCAL: bool
    """Whether a script must be a file on this machine."""

    COUNTS_WORKERS: bool
    """Whether ``--nproc`` sets the number of workers."""

    TAKES_RANGES: bool
    """Whether it may be MIN:MAX."""

    def render(self, job: Job, options: Options) -> str:
        """What would run, as text.

        Raises:
            LaunchError: an option that this engine cannot take.
        """

    def launch(self, job: Job, options: Options) -> int:
        """Runs it.

        Returns:
            The exit code.

        Raises:
            LaunchError: an option that this engine cannot take, or a missing program.
        """


ENGINES: dict[str, Engine] = {
    "local": local,
    "slurm": slurm,
    "ray": ray,
    "kubernetes": kubernetes,
    "skypilot": skypilot,
    "tpu-vm": tpu_vm,
}
