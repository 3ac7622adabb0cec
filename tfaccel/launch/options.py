"""The options of engines: each engine declares its own, and some are common to several."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tfaccel.errors import LaunchError


@dataclass(frozen=True)
class Option:
    """One option of one or several engines.

    Attributes:
        flag: such as ``"--image"``.
        help: its help text.
        metavar: its value in the help; empty for a switch.
        default: its value when not given.
        type: parses the value.
        choices: the only values, if not empty.
        repeated: whether it may be given again; its value is then a list.
        required: whether it must be given.
    """

    flag: str
    help: str
    metavar: str = ""
    default: Any = None
    type: Callable[[str], Any] = str
    choices: tuple[str, ...] = ()
    repeated: bool = False
    required: bool = False

    @property
    def dest(self) -> str:
        """The key of its value.

        >>> Option("--dry-run", "").dest
        'dry_run'
        """
        return self.flag.strip("-").replace("-", "_")

    def add_to(self, group: argparse._ArgumentGroup) -> None:
        """Declares it; it leaves no value when not given."""
        settings: dict[str, Any] = {
            "dest": self.dest,
            "default": argparse.SUPPRESS,
            "help": self.help,
        }
        if self.choices:
            group.add_argument(self.flag, choices=self.choices, **settings)
        elif not self.metavar:
            group.add_argument(self.flag, action="store_true", **settings)
        else:
            action = "append" if self.repeated else "store"
            group.add_argument(
                self.flag, metavar=self.metavar, type=self.type, action=action, **settings
            )


Options = Mapping[str, Any]
"""The values of an engine's own options, by `Option.dest`."""


def count(text: str) -> int:
    """Parses a count of at least one."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid; expected a positive integer")
    return int(text)


def values_of(
    engine: str,
    accepted: tuple[Option, ...],
    values: Mapping[str, Any],
    every: Mapping[str, Option],
) -> Options:
    """The values of an engine's options, with its defaults.

    Args:
        engine: its name.
        accepted: the options it accepts.
        values: the values from the command line, of any engine.
        every: the options of all engines, by `Option.dest`.

    Raises:
        LaunchError: another engine's option is given, or a required one is missing.
    """
    takes = ", ".join(option.flag for option in accepted) or "no options of its own"
    known = {option.dest for option in accepted}
    strange = [every[dest].flag for dest in values if dest not in known]
    if strange:
        raise LaunchError(
            f"{', '.join(strange)} is not an option of --engine {engine}; expected those of every "
            f"engine and its own: {takes}"
        )
    missing = [option for option in accepted if option.required and option.dest not in values]
    if missing:
        raise LaunchError(
            f"--engine {engine} needs {', '.join(f'{o.flag} {o.metavar}' for o in missing)}, and "
            "it was not given"
        )
    return {option.dest: values.get(option.dest, _default(option)) for option in accepted}


def _default(option: Option) -> Any:
    if option.repeated:
        return []
    return option.default if option.metavar or option.choices else False


NAME = Option("--name", "name of the job; default: the script's", "NAME")
CPUS = Option("--cpus", "processor cores of each worker", "N")
MEMORY = Option("--memory", "memory of each worker, such as 16Gi", "SIZE")
GPUS = Option("--gpus", "GPUs of each worker", "N", type=count)
GRACE = Option(
    "--grace", "seconds between SIGTERM and SIGKILL when a worker is stopped", "S", None, float
)
SPOT = Option("--spot", "use spot (preemptible) machines")
