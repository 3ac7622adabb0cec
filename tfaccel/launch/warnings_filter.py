"""Warnings and errors among the lines of a worker: what each is about, and how far it reaches."""

from __future__ import annotations

import re

_LOG = re.compile(
    r"""
    (?:
        [WEF]\d{4}\ [\d:.]+\ +\d+\ \S+:\d+\]                       # absl
        | \d{4}-\d\d-\d\d\ [\d:.,]+:?\ [WEF]\ \S+:\d+\]             # TensorFlow's older form
        | .{0,60}?\b(?:WARNING|ERROR|CRITICAL|FATAL)\b(?::[\w.]+:)? # Python's logging
    )\s*(?P<message>.*)
    """,
    re.VERBOSE,
)
_WARNING = re.compile(r"\S.*:\d+: (?P<message>(\w+\.)*\w*Warning: .*)")  # Python's warnings
_OURS = re.compile(r"tfaccel: (?P<message>.*)")  # `tfaccel/cluster/failure_detector.py`
_THREAD = re.compile(r"(?P<message>Exception (in thread|ignored in).*|Task exception was never.*)")
_ERROR = re.compile(r"[EF]\d{4} |.{0,60}?\b(ERROR|CRITICAL|FATAL)\b")
_TRACEBACK = "Traceback (most recent call last)"

# What differs between workers in otherwise equal messages.
_OWN = re.compile(r"0x[0-9a-f]+|task:\d+|\d{1,3}(\.\d{1,3}){3}:\d+|\bpid \d+|\d{5,}")


def subject(text: str) -> str | None:
    """The normalized text of a warning or an error, if the line begins one.

    Times, addresses, and numbers of tasks and threads are left out: the same message from another
    worker, or through another logger, compares equal.

    >>> subject("WARNING:tensorflow:rows were dropped") == subject(
    ...     "W1129 08:05:04.064800 139888070650752 own_rows.py:44] rows were dropped"
    ... )
    True
    >>> subject("Epoch 1/12") is None
    True
    """
    for form in (_OURS, _WARNING, _THREAD, _LOG):
        if match := form.match(text):
            return _OWN.sub("#", match["message"]).strip() or _OWN.sub("#", text)
    return None


class LogRecord:
    """One warning or error, line by line.

    Args:
        first: its first line.
    """

    def __init__(self, first: str) -> None:
        self.lines = [first]
        self._has_traceback = bool(_THREAD.match(first) or _ERROR.match(first))
        self._ends_with_exception = False

    def takes(self, text: str) -> bool:
        """Adds a line, if it belongs to this: indented lines do, and an error's traceback."""
        if self._has_traceback and _TRACEBACK in text:
            self._ends_with_exception = True
        elif text[:1].isspace():
            pass
        elif self._ends_with_exception and text:
            self._ends_with_exception = False
        else:
            return False
        self.lines.append(text)
        return True
