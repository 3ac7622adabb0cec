"""TPUs before there is one: `check` compiles a training step with the real compiler."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tfaccel.tpu.check import check
from tfaccel.tpu.report import Report

__all__ = ["Report", "check", "main"]


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
    parser.add_argument("what", choices=["check"], help="`tfaccel tpu check --help` says more")
    parser.parse_args(argv[:1])
    from tfaccel.tpu import command

    return command.main(argv[1:])
