"""Many workers, one terminal: whole lines, and progress bars that stay tidy."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, TextIO

from tfaccel.launch.startup_messages import is_startup_message

LAST_LINES = 400
MAX_LINE_BYTES = 1 << 16
BAR_EVERY_S = 60.0

# A \r at the very end is held, as a \n may follow. A single backspace is not a bar's: it makes
# letters bold.
_BACK = rb"(?:\r|\x08{2,}|\x1b\[\d*A)"
_END = re.compile(rb"(\r\n|\n|" + _BACK + rb"(?:" + _BACK + rb"|\x08|\x1b\[\d*K)*(?=[^\n\r\x08]))")
_COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "red")


@dataclass(frozen=True)
class Line:
    """One line of a worker; a progress bar's is redrawn by the next one."""

    text: str
    redrawn: bool = False


class LineSplitter:
    r"""Splits chunks of bytes into lines, at ``\n``, ``\r\n`` and progress bar redraws.

    A redraw is ``\r``, backspaces, or the sequence that moves the cursor up.

    >>> split = LineSplitter()
    >>> list(split.feed(b"1/2\r2/2\r\nnext"))
    [Line(text='1/2', redrawn=True), Line(text='2/2', redrawn=False)]
    >>> list(split.end())
    [Line(text='next', redrawn=False)]
    """

    def __init__(self) -> None:
        self._partial_line = b""

    def feed(self, chunk: bytes) -> Iterator[Line]:
        """The lines that this chunk completes."""
        *pieces, self._partial_line = _END.split(self._partial_line + chunk)
        for content, end in zip(pieces[::2], pieces[1::2], strict=True):
            line = Line(_text(content), redrawn=not end.endswith(b"\n"))
            if line.text.strip() or not line.redrawn:
                yield line
        if len(self._partial_line) > MAX_LINE_BYTES:
            yield from self.end()

    def end(self) -> Iterator[Line]:
        """The last line, if unterminated."""
        text = _text(self._partial_line)
        self._partial_line = b""
        if text.strip():
            yield Line(text)


def _text(content: bytes) -> str:
    return content.decode(errors="replace").rstrip("\r\b").lstrip("\b")


class Terminal:
    """Where all lines go: one at a time, from any number of threads.

    On a terminal a progress bar stays on the last row and is redrawn in place. In a file it would
    be a thousand lines; there only its last state is written, and one every `BAR_EVERY_S`.
    """

    def __init__(self, stream: TextIO, *, terminal: bool, colour: bool) -> None:
        self._stream = stream
        self._terminal = terminal
        self._colour = colour
        self._lock = threading.Lock()
        self._bar = ""
        self._bar_rank: int | None = None
        self._bar_at: dict[int, float] = {}

    def show(self, rank: int, line: Line, *, ranks: Sequence[int]) -> None:
        """Writes one line of one rank.

        Args:
            rank: the worker it belongs to.
            line: what to write.
            ranks: to prefix it with; no prefix where empty.
        """
        before = self._prefix(ranks)
        row = f"{before}{line.text}"
        with self._lock:
            if not self._terminal:
                if not line.redrawn or self._is_due(rank):
                    self._write(f"{row}\n")
                return
            if line.redrawn:
                # A bar that wraps could not be redrawn: only its last row would be cleared.
                width = max(10, shutil.get_terminal_size().columns - len(_label(ranks)) - 1)
                self._bar = f"{before}{line.text[:width]}\x1b[0m"
                self._bar_rank = rank
                self._write(f"\r\x1b[K{self._bar}")
                return
            if self._bar_rank == rank:  # Its own next line takes the bar's place.
                self._bar, self._bar_rank = "", None
            self._write(f"\r\x1b[K{row}\n{self._bar}")

    def close(self) -> None:
        """Leaves the last progress bar on its own row."""
        with self._lock:
            if self._bar:
                self._write("\n")
            self._bar, self._bar_rank = "", None

    def _is_due(self, rank: int) -> bool:
        now = time.monotonic()
        if now - self._bar_at.setdefault(rank, now) < BAR_EVERY_S:
            return False
        self._bar_at[rank] = now
        return True

    def _prefix(self, ranks: Sequence[int]) -> str:
        if not ranks or not self._colour:
            return _label(ranks)
        from rich.color import ColorSystem
        from rich.style import Style

        style = Style.parse(_COLOURS[ranks[0] % len(_COLOURS)])
        label = _label(ranks).rstrip()
        return f"{style.render(label, color_system=ColorSystem.STANDARD)} "

    def _write(self, text: str) -> None:
        encoding = self._stream.encoding or "utf-8"
        self._stream.write(text.encode(encoding, "replace").decode(encoding))
        self._stream.flush()


def _label(ranks: Sequence[int]) -> str:
    return f"[{','.join(map(str, ranks))}] " if ranks else ""


class OutputForwarder(threading.Thread):
    """Copies one pipe of one worker to a console and to its log, until end of file.

    Args:
        pipe: to be read and closed.
        name: of the thread.
        show: called with each line.
        log: gets each line, but not what a progress bar redraws.
        show_startup: whether TensorFlow's start-up messages are shown; they are in the log anyway.
    """

    def __init__(
        self,
        pipe: IO[bytes],
        name: str,
        show: Callable[[Line], None],
        log: IO[bytes] | None = None,
        *,
        show_startup: bool = True,
    ) -> None:
        super().__init__(name=f"tfaccel-output-{name}", daemon=True)
        self._pipe = pipe
        self._show = show
        self._log = log
        self._show_startup = show_startup
        self._last: deque[str] = deque(maxlen=LAST_LINES)

    @property
    def last_lines(self) -> tuple[str, ...]:
        """The last lines received, without those that a progress bar redrew."""
        return tuple(self._last)

    def run(self) -> None:
        """Reads to the end, even if console or log fail: a full pipe blocks a worker."""
        split = LineSplitter()
        with contextlib.suppress(OSError, ValueError), self._pipe:
            while chunk := os.read(self._pipe.fileno(), 1 << 16):
                for line in split.feed(chunk):
                    self._carry(line)
        for line in split.end():
            self._carry(line)

    def _carry(self, line: Line) -> None:
        if not line.redrawn and self._log is not None:
            with contextlib.suppress(OSError, ValueError):
                self._log.write(f"{line.text}\n".encode())
                self._log.flush()
        if not self._show_startup and is_startup_message(line.text):
            return
        if not line.redrawn:
            self._last.append(line.text)
        with contextlib.suppress(OSError, ValueError):
            self._show(line)
