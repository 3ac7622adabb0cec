"""One console for all workers: the chief's output, and warnings that only others give."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from tfaccel.launch.output import Line, Terminal
from tfaccel.launch.show import Shown
from tfaccel.launch.warnings_filter import LogRecord, subject

HOLD_S = 10.0
"""How long to hold a warning in case a shown worker logs the same, in seconds."""


@dataclass
class _PendingRecord:
    record: LogRecord
    ranks: list[int]
    due: float


class Console:
    """Where each worker's lines are shown, or dropped.

    Lines of a shown worker pass through unchanged. Of other workers only warnings are shown, with
    the rank: once if several log the same, and not at all if a shown worker logs it. As it may log
    it later, they are held for `HOLD_S`.

    Args:
        shown: whose lines are shown.
        out: where stdout goes.
        err: where stderr goes, and the others' warnings.
        hold_s: how long to hold these, in seconds.
    """

    def __init__(
        self, shown: Shown, out: Terminal, err: Terminal, *, hold_s: float = HOLD_S
    ) -> None:
        self._shown = shown
        self._streams = (out, err)
        self._hold_s = hold_s
        self._lock = threading.Lock()
        self._shown_subjects: set[str] = set()
        self._pending: dict[str, _PendingRecord] = {}
        self._open: dict[tuple[int, int], LogRecord] = {}
        self._last: dict[int, tuple[str, str]] = {}
        self._timer: threading.Timer | None = None

    def show(self, rank: int, stream: int, line: Line) -> None:
        """Handles one line of one worker.

        Args:
            rank: the worker's.
            stream: 0 for stdout, 1 for stderr.
            line: without its line ending.
        """
        if rank not in self._shown:
            if not line.redrawn:
                with self._lock:
                    self._collect(rank, stream, line.text)
            return
        if self._shown.ranks is not None and not line.redrawn and self._again(rank, line.text):
            return
        ranks = (rank,) if self._shown.labelled else ()
        self._streams[stream].show(rank, line, ranks=ranks)

    def close(self) -> None:
        """Shows what is held, and completes unfinished lines."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._release(float("inf"))
        for stream in self._streams:
            stream.close()

    def _again(self, rank: int, text: str) -> bool:
        """Records a line of a shown worker; returns whether another logger has just printed it."""
        about = subject(text)
        if about is None:
            return False
        with self._lock:
            self._shown_subjects.add(about)
            self._pending.pop(about, None)
            last, self._last[rank] = self._last.get(rank), (about, text)
        return last is not None and last[0] == about and last[1] != text and _is_log(text, last[1])

    def _collect(self, rank: int, stream: int, text: str) -> None:
        """Handles a line of a worker that is not shown."""
        record = self._open.get((rank, stream))
        if record is not None and record.takes(text):
            return
        self._open.pop((rank, stream), None)
        about = subject(text)
        if about is None:
            return
        self._open[rank, stream] = record = LogRecord(text)
        if about in self._shown_subjects:
            return
        if (pending := self._pending.get(about)) is not None:
            if rank not in pending.ranks:
                pending.ranks.append(rank)
            return
        self._pending[about] = _PendingRecord(record, [rank], time.monotonic() + self._hold_s)
        self._wait()

    def _wait(self) -> None:
        if self._timer is not None or not self._pending:
            return
        left = min(pending.due for pending in self._pending.values()) - time.monotonic()
        self._timer = threading.Timer(max(0.0, left), self._on_time)
        self._timer.daemon = True
        self._timer.start()

    def _on_time(self) -> None:
        with self._lock:
            self._timer = None
            self._release(time.monotonic())
            self._wait()

    def _release(self, now: float) -> None:
        due = {about: pending for about, pending in self._pending.items() if pending.due <= now}
        for about, pending in due.items():
            self._shown_subjects.add(about)
            del self._pending[about]
            for text in pending.record.lines:
                self._streams[1].show(pending.ranks[0], Line(text), ranks=sorted(pending.ranks))


def _is_log(*texts: str) -> bool:
    """Whether one of the lines is from Python's logging and the other from absl."""
    return {text[:1] in "WEF" and text[1:5].isdigit() for text in texts} == {True, False}
