"""Processes forked from one with a mesh: the mesh stays with the process that made it.

The threads that run DTensor's devices do not survive a fork, so a forked process that reads a
variable of the mesh hangs. What such a process creates is on its host.
"""

from __future__ import annotations

import os
from functools import cache

from tfaccel.errors import StrategyError

_forked = False


def in_forked_process() -> bool:
    """Whether this process was forked after its parent had made a mesh."""
    return _forked


def check() -> None:
    """Raises where the variables of a mesh cannot be read.

    Raises:
        StrategyError: in a process that was forked from the one that has the mesh.
    """
    if _forked:
        raise StrategyError(
            "tfaccel: a variable of a mesh was used in a forked process, where no device of the "
            "mesh runs; expected the process that created the strategy; give the other process "
            "plain arrays (model.get_weights()), or start it with multiprocessing's 'spawn'."
        )


@cache
def register_hook() -> None:
    """Lets `in_forked_process` be true in processes that are forked from now on."""
    os.register_at_fork(after_in_child=_in_child)


def _in_child() -> None:
    global _forked
    _forked = True
