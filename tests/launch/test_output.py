from __future__ import annotations

import io
import os

import pytest

from tfaccel.launch.output import MAX_LINE_BYTES, Line, LineSplitter, OutputForwarder, Terminal


def split(*chunks: bytes) -> list[Line]:
    splitter = LineSplitter()
    lines = [line for chunk in chunks for line in splitter.feed(chunk)]
    return [*lines, *splitter.end()]


BAR = [Line("1/3", True), Line("2/3", True)]


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        ([b"a\nb\n"], [Line("a"), Line("b")]),
        ([b"a", b"b\n", b"c"], [Line("ab"), Line("c")]),
        ([b"\n\n"], [Line(""), Line("")]),
        ([b"a\r\nb\r", b"\n"], [Line("a"), Line("b")]),
        ([b"\r1/3", b"\r2/3", b"\r3/3\n"], [Line("1/3", True), Line("2/3", True), Line("3/3")]),
        ([b"1/3\r", b"2/3\r"], [Line("1/3", True), Line("2/3")]),
        ([b"bar\r   \rdone\n"], [Line("bar", True), Line("done")]),
        ([b"\b\b\bbar\n"], [Line("bar")]),
        ([b"1/3", b"\b\b", b"\b2/3\b\b\b\r3/3\n"], [*BAR, Line("3/3")]),
        ([b"1/3\r\x1b[2K\x1b[1A2/3\x1b[A3/3"], [*BAR, Line("3/3")]),
        ([b"b\bbold \x1b[m\x1b[Kcoloured\n"], [Line("b\bbold \x1b[m\x1b[Kcoloured")]),
        (["é".encode()[:1], "é".encode()[1:], b"\n"], [Line("é")]),
        ([b"\xff\n"], [Line("\N{REPLACEMENT CHARACTER}")]),
        ([b"x" * (MAX_LINE_BYTES + 1), b"y\n"], [Line("x" * (MAX_LINE_BYTES + 1)), Line("y")]),
    ],
)
def test_lines_of_chunks(chunks: list[bytes], lines: list[Line]) -> None:
    assert split(*chunks) == lines


def shown(*lines: tuple[int, Line], terminal: bool, colour: bool = False) -> str:
    """What a terminal shows where several workers' lines are shown."""
    stream = io.StringIO()
    screen = Terminal(stream, terminal=terminal, colour=colour)
    for rank, line in lines:
        screen.show(rank, line, ranks=(rank,))
    screen.close()
    return stream.getvalue()


def test_a_file_gets_whole_lines_and_of_a_bar_only_its_end() -> None:
    lines = [(0, Line("1/2", redrawn=True)), (1, Line("hello")), (0, Line("2/2"))]
    assert shown(*lines, terminal=False) == "[1] hello\n[0] 2/2\n"


def test_a_terminal_keeps_a_bar_below_the_others_lines() -> None:
    clear = "\r\x1b[K"
    lines = [(0, Line("1/2", redrawn=True)), (1, Line("hello")), (0, Line("2/2"))]
    assert shown(*lines, terminal=True) == (
        f"{clear}[0] 1/2\x1b[0m{clear}[1] hello\n[0] 1/2\x1b[0m{clear}[0] 2/2\n"
    )


def test_a_bar_never_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    text = shown((0, Line("=" * 200, redrawn=True)), terminal=True)
    assert text.count("=") == 30 - len("[0] ") - 1


def test_ranks_differ_in_colour() -> None:
    text = shown((0, Line("a")), (1, Line("a")), terminal=False, colour=True)
    assert text == "\x1b[36m[0]\x1b[0m a\n\x1b[32m[1]\x1b[0m a\n"


def test_text_that_the_stream_cannot_encode_is_replaced() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    Terminal(stream, terminal=False, colour=False).show(0, Line("━━ done"), ranks=())
    assert raw.getvalue() == b"?? done\n"


def test_a_broken_screen_does_not_stop_the_worker_or_its_log() -> None:
    class Broken(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    read, write = os.pipe()
    log = io.BytesIO()
    screen = Terminal(Broken(), terminal=False, colour=False)
    pump = OutputForwarder(
        os.fdopen(read, "rb"), "0", lambda line: screen.show(0, line, ranks=()), log
    )
    pump.start()
    with os.fdopen(write, "wb") as pipe:
        pipe.write(b"1/2\r2/2\nlast\n")
    pump.join(10)
    assert log.getvalue() == b"2/2\nlast\n"
    assert pump.last_lines == ("2/2", "last")


@pytest.mark.parametrize("show_startup", [False, True])
def test_start_up_messages_are_in_the_log_and_shown_if_wanted(show_startup: bool) -> None:
    message = (
        b"I0000 00:00:1795939443.312994    8450 port.cc:153] oneDNN custom operations are on.\n"
    )
    read, write = os.pipe()
    log = io.BytesIO()
    seen: list[Line] = []
    pump = OutputForwarder(os.fdopen(read, "rb"), "0", seen.append, log, show_startup=show_startup)
    pump.start()
    with os.fdopen(write, "wb") as pipe:
        pipe.write(message + b"last\n")
    pump.join(10)
    assert log.getvalue() == message + b"last\n"
    assert len(seen) == len(pump.last_lines) == (2 if show_startup else 1)
