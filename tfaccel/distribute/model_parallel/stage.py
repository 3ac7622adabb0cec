"""Where the program is.

On the host, in a step on the mesh, in an update of the optimizer, or in a function that runs on the
host with copies of the variables.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

HOST, STEP, UPDATE, COPY = "host", "step", "update", "copy"


class _Here(threading.local):
    stage = HOST


_here = _Here()


def current() -> str:
    """The stage of this thread."""
    return _here.stage


@contextmanager
def entered(stage: str) -> Iterator[None]:
    """Runs what is inside in `stage`."""
    before, _here.stage = _here.stage, stage
    try:
        yield
    finally:
        _here.stage = before
