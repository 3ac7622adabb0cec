"""The phase that the program is in.

On the host, in a step on the mesh, in an update of the optimizer, or in a function that runs on the
host with copies of the variables.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager

from tfaccel.distribute.replacements import replaced

HOST, STEP, UPDATE, COPY = "host", "step", "update", "copy"


class _ThreadState(threading.local):
    phase = HOST


_thread_state = _ThreadState()


def current() -> str:
    """The phase of this thread."""
    return _thread_state.phase


def entered(phase: str) -> AbstractContextManager[None]:
    """Runs its body in `phase`."""
    return replaced(_thread_state, "phase", phase)
