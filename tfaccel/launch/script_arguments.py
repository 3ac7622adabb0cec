"""The arguments that every launcher takes: what to run, and variables for it."""

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


def script_of(
    parser: argparse.ArgumentParser, options: argparse.Namespace, *, is_here: bool = True
) -> list[str]:
    """The script, module or program and its arguments.

    The first ``--`` before or after a script is dropped. A script would take it for the end of its
    flags, and what follows for positional arguments.

    Args:
        parser: reports errors.
        options: parsed after `add_command`.
        is_here: whether a script must be a file on this machine.
    """
    separated = options.command[:1] == ["--"]
    argv = options.command[1:] if separated else options.command
    if not argv:
        parser.error("there is nothing to run; expected a script, for example train.py")
    is_file = not is_here or options.module or Path(argv[0]).is_file()
    if argv[0].endswith(".py") and not is_file:
        parser.error(f"there is no file {argv[0]!r}; expected a script, for example train.py")
    is_python = options.module or argv[0].endswith(".py")
    follows = not separated and is_python and argv[1:2] == ["--"]
    return [argv[0], *argv[2:]] if follows else list(argv)


def python_command(argv: Sequence[str], *, module: bool, python: str = sys.executable) -> list[str]:
    """Puts a Python, by default this one, before a script or a module; a program runs unchanged.

    >>> python_command(["pkg.train", "--lr=1"], module=True)[1:]
    ['-m', 'pkg.train', '--lr=1']
    >>> python_command(["nice", "python", "train.py"], module=False)
    ['nice', 'python', 'train.py']
    """
    if module:
        return [python, "-m", *argv]
    return [python, *argv] if argv[0].endswith(".py") else list(argv)


def variable(text: str) -> tuple[str, str]:
    """Parses one `K=V`.

    >>> variable("TF_CPP_MIN_LOG_LEVEL=2")
    ('TF_CPP_MIN_LOG_LEVEL', '2')
    """
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not K=V, for example OMP_NUM_THREADS=2")
    return name, value
