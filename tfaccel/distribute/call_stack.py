"""The calls that led to a function, read from Python's stack.

What Keras does not pass to a strategy is read from the functions that call it
(`_private/callers.py`): all walks over the stack are this one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from tfaccel.cluster.stacks import current_frames


class Call:
    """A running function.

    Args:
        frame: its frame.
    """

    def __init__(self, frame: FrameType) -> None:
        self._frame = frame

    @property
    def function(self) -> str:
        """Its name, without class and module."""
        return self._frame.f_code.co_name

    @property
    def qualified_name(self) -> str:
        """Its name with that of its class, where Python has it (from 3.11 on)."""
        return str(getattr(self._frame.f_code, "co_qualname", self.function))

    @property
    def module(self) -> str:
        """The name of its module."""
        return str(self._frame.f_globals.get("__name__", ""))

    def is_of(self, package: str) -> bool:
        """Whether its module is inside `package`."""
        return self.module.startswith(f"{package}.")

    def is_of_a_library(self) -> bool:
        """Whether it belongs to TensorFlow, Keras or tfaccel, not to the user."""
        return any(map(self.is_of, ("tensorflow", "keras", "tfaccel")))

    def local(self, name: str) -> Any:
        """The current value of its argument or local variable of that name; None without one."""
        return self._frame.f_locals.get(name)


def calls(above: int = 0) -> Iterator[Call]:
    """The calls that led to the calling function, the innermost first.

    Args:
        above: how many of them to skip: for 0 the first is that of the caller of the calling
            function.

    >>> def asks():
    ...     return [call.function for call in calls()][:2]
    >>> def outer():
    ...     return asks()
    >>> outer()
    ['outer', '<module>']
    """
    return _outwards(sys._getframe(above + 2))


def calls_of_thread(number: int) -> Iterator[Call]:
    """The calls of another running thread, the innermost first; none if there is no such thread.

    Args:
        number: as `threading.get_ident` gave it there.
    """
    return _outwards(current_frames().get(number))


def _outwards(frame: FrameType | None) -> Iterator[Call]:
    while frame is not None:
        yield Call(frame)
        frame = frame.f_back
