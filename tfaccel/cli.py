"""The command `tfaccel`: a table of subcommands, each imported when it is requested."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import tfaccel
from tfaccel.errors import TfaccelError


@dataclass(frozen=True)
class Command:
    """One subcommand.

    Attributes:
        target: ``module:function``, a function of the arguments that returns the exit code.
        help: what it does, in a few words.
    """

    target: str
    help: str

    def load(self) -> Callable[[Sequence[str]], int]:
        """Imports the function."""
        module, _, function = self.target.partition(":")
        return cast(
            "Callable[[Sequence[str]], int]", getattr(importlib.import_module(module), function)
        )


COMMANDS = {
    "launch": Command(
        "tfaccel.launch.main:main", "start the workers of a job, here or on a cluster"
    ),
    "env": Command("tfaccel.env:main", "show versions, devices and settings, to paste in a report"),
    "monitor": Command(
        "tfaccel.monitoring.command:main", "show where the time of a training run went"
    ),
    "bench": Command("tfaccel.bench:main", "measure how fast workers reduce gradients"),
    "plan": Command(
        "tfaccel.planner.plan_command:main",
        "estimate whether a model fits, how to split it, and its step time",
    ),
    "tpu": Command(
        "tfaccel.tpu:main",
        "compile a training step with the TPU compiler (no TPU needed), or run a script on a Cloud "
        "TPU",
    ),
    "fpga": Command("tfaccel.fpga:main", "export a model to checked firmware, or sweep precisions"),
    "test": Command("tfaccel.selftest:main", "check that training works here as on one device"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand.

    Args:
        argv: the arguments after the program's name; those of this process when None.

    Returns:
        The exit code: 2 for invalid arguments or a `TfaccelError`, else the
        subcommand's own.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in COMMANDS:
        _parser().parse_args(words or ["--help"])
        return 0
    name, *rest = words
    try:
        return COMMANDS[name].load()(rest)
    except TfaccelError as error:
        print(f"tfaccel {name}: error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:{width}}  {one.help}" for name, one in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="tfaccel",
        description="Distributed training for Keras 3 on TensorFlow.",
        epilog=f"commands:\n{listed}\n\n`tfaccel COMMAND --help` describes each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tfaccel {tfaccel.__version__}")
    parser.add_argument(
        "command", choices=COMMANDS, metavar="COMMAND", help="one of the commands below"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
