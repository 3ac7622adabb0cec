"""The words that every launcher takes: what to run, and variables for it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def add_command(parser: argparse.ArgumentParser) -> None:
    """Adds `[-m] [--] script.py ARGS` to the end of a launcher's options."""
    parser.add_argument("-m", dest="module", action="store_true", help="SCRIPT is a module's name")
    parser.add_argument(
        "command",
        nargs=argparse.REMAINDER,
        metavar="SCRIPT [ARG ...]",
        help="a .py file, run by this Python; anything else is run as a program",
    )


def command_of(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[str]:
    """The program and its arguments, from options parsed after `add_command`."""
    argv = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not argv:
        parser.error("there is nothing to run; expected a script, for example train.py")
    if not options.module and argv[0].endswith(".py") and not Path(argv[0]).is_file():
        parser.error(f"there is no file {argv[0]!r}; expected a script, for example train.py")
    return python_command(argv, module=options.module)


def python_command(argv: Sequence[str], *, module: bool) -> list[str]:
    """Puts this Python before a script or a module, and nothing before another program.

    >>> python_command(["pkg.train", "--lr=1"], module=True)[1:]
    ['-m', 'pkg.train', '--lr=1']
    >>> python_command(["nice", "python", "train.py"], module=False)
    ['nice', 'python', 'train.py']
    """
    if module:
        return [sys.executable, "-m", *argv]
    return [sys.executable, *argv] if argv[0].endswith(".py") else list(argv)


def variable(text: str) -> tuple[str, str]:
    """Reads one `K=V`.

    >>> variable("TF_CPP_MIN_LOG_LEVEL=2")
    ('TF_CPP_MIN_LOG_LEVEL', '2')
    """
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not K=V, for example OMP_NUM_THREADS=2")
    return name, value
