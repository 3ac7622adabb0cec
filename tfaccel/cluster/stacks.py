"""The Python stacks of this process's threads, as text."""

from __future__ import annotations

import gc
import sys
import threading
import traceback
from collections.abc import Collection
from types import FrameType

_COLLECTION_OFF = threading.RLock()


def current_frames() -> dict[int, FrameType]:
    """The innermost frame of each thread, by the thread's number.

    Up to Python 3.11 `sys._current_frames` may collect garbage while it holds a lock that other
    threads wait for while holding the interpreter's, which deadlocks
    (https://github.com/python/cpython/issues/106883). Of two threads here at once, each could undo
    what the other set: collection would stay off, or be on meanwhile.
    """
    with _COLLECTION_OFF:
        collects = gc.isenabled()
        gc.disable()
        try:
            return sys._current_frames()
        finally:
            if collects:
                gc.enable()


def python_stacks(title: str, without: Collection[int] = ()) -> str:
    """The stack of each thread, the main one's last.

    Args:
        title: heading of each stack.
        without: the numbers of threads to leave out.
    """
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    main = threading.main_thread().ident
    lines = []
    for number, frame in sorted(current_frames().items(), key=lambda item: item[0] == main):
        if number in without:
            continue
        lines.append(f"{title}, thread {names.get(number, number)}, innermost call last:\n")
        lines += traceback.format_stack(frame)
    return "".join(lines)
