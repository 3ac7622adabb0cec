"""`tfaccel bench`: what this hardware can do, measured."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Runs one benchmark.

    Args:
        argv: its name, and words for it.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="tfaccel bench", description=__doc__)
    parser.add_argument("what", choices=["communication"])
    parser.parse_args(argv[:1])
    from tfaccel.bench import communication

    return communication.main(argv[1:])
