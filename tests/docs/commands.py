"""Checks the commands that pages show, without running them."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from typing import Any
from unittest import mock

from tests.docs.fences import ROOT, Fence

# Only an argument vector's first word goes through these; the next parser takes the rest.
_FIRST_WORD = {"tfaccel bench", "tfaccel tpu"}
_STANDS_FOR_THEIRS = {"train.py", "model.keras", "mine.keras", "held_out.npz", "train.npz"}


class ParsedError(Exception):
    """The last parser has accepted its words."""


def lines(fence: Fence) -> Iterator[tuple[str, str]]:
    """The commands of a block, and where each begins; a command may go on in the next line."""
    command, begins = "", 0
    for number, line in enumerate(fence.text.splitlines(), start=fence.line):
        begins = begins if command else number
        command += line.strip()
        if command.endswith("\\"):
            command = command[:-1]
        elif command.count("'") % 2:
            command += " "
        else:
            if command and not command.startswith("#"):
                yield f"{fence.page}:{begins}", command
            command = ""


def wrong(line: str) -> str:
    """What is wrong with a command; an empty text for nothing that can be seen."""
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0], re.DOTALL):
        words.pop(0)
    if "tfaccel" in words:
        return _tfaccel(words[words.index("tfaccel") + 1 :])
    if words[:1] == ["make"]:
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        return "" if words[1] in targets else f"the Makefile has no target {words[1]!r}"
    if words[:2] == ["pip", "install"]:
        return _pip(words[2:])
    return _files(words)


def _tfaccel(words: list[str]) -> str:
    """Gives the words to the parsers of the command, and stops behind the last one."""
    from tfaccel import cli

    parse = argparse.ArgumentParser.parse_args

    def parsed(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> Any:
        found = parse(self, *args, **kwargs)
        if self.prog in _FIRST_WORD:
            return found
        raise ParsedError

    said = io.StringIO()
    try:
        with (
            mock.patch.object(argparse.ArgumentParser, "parse_args", parsed),
            contextlib.redirect_stderr(said),
        ):
            cli.main(words)
    except ParsedError:
        return _files(words)
    except SystemExit as end:
        return "" if end.code in (None, 0) else said.getvalue()
    return "no parser looked at it"


def _pip(words: list[str]) -> str:
    setup = (ROOT / "setup.py").read_text("utf-8")
    extras = re.findall(r'^        "([\w-]+)": \[', setup, re.MULTILINE)
    asked = [e for word in words for e in re.findall(r"tfaccel\[([^\]]*)\]", word)]
    unknown = [e for several in asked for e in several.split(",") if e not in extras]
    return f"setup.py has no extra {', '.join(unknown)}" if unknown else ""


def _files(words: list[str]) -> str:
    """Paths of the repository must be there, and modules that `python -m` runs."""
    for place, word in enumerate(words):
        path = word.partition(":")[0]
        if path in _STANDS_FOR_THEIRS:
            continue
        inside = path.startswith(("examples/", "tests/", "benchmarks/", "docs/", "tfaccel/"))
        if inside and not (ROOT / path).exists():
            return f"there is no {path}"
        if place and words[place - 1] == "-m" and word.startswith(("tests.", "tfaccel.")):
            module = ROOT / word.replace(".", "/")
            if not module.is_dir() and not module.with_suffix(".py").exists():
                return f"there is no module {word}"
    return ""
