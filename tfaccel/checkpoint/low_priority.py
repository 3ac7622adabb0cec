"""Threads that use the processor time that training leaves."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable

_NICE = 10


def start(work: Callable[[], None], name: str) -> threading.Thread:
    """Starts a thread with a low priority of its own, where the system has that (Linux).

    Not a daemon thread: a process whose `fit` fails still finishes the work.

    Args:
        work: what it does.
        name: of the thread.
    """

    def run() -> None:
        if sys.platform == "linux":
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        work()

    thread = threading.Thread(target=run, name=f"tfaccel: {name}")
    thread.start()
    return thread
