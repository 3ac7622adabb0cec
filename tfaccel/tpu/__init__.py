"""TPU support without a TPU: `check` compiles a training step with the real compiler."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Sequence

from tfaccel.tpu.check import check
from tfaccel.tpu.report import Report

__all__ = ["Report", "check", "main"]

_HOME = {"check": "tfaccel.tpu.command", "run": "tfaccel.launch.tpu_run"}


def main(argv: Sequence[str]) -> int:
    """Runs ``tfaccel tpu check`` or ``tfaccel tpu run``.

    Args:
        argv: its name, and words for it.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(
        prog="tfaccel tpu", description="Check a model before you rent a TPU, then run it on one."
    )
    parser.add_argument("what", choices=_HOME, help="`tfaccel tpu check --help` lists the options")
    what: str = parser.parse_args(argv[:1]).what
    run: Callable[[Sequence[str]], int] = importlib.import_module(_HOME[what]).main
    return run(argv[1:])
