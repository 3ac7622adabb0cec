"""The code blocks of the pages, and what their info strings say about running them.

    ```python                                     run, in order, in the page's own process
    ```python session="mesh"                      in another process of its own
    ```python session="two" workers="2"           in two processes, as workers of one job
    ```python raises="PerReplica"                 must fail with a message that holds these words
    ```python no_run="needs a TPU"                is compiled only; the reason is told
    ```text output="all"                          is what the block before it printed

A setting holds for the whole session and stands at its first block.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))

_OPEN = re.compile(r"^(?P<indent> *)(?P<marks>`{3,})(?P<language>[\w-]*)(?P<rest>[^`\n]*)$")
_SETTING = re.compile(r'(\w+)="([^"]*)"')
KNOWN = {"no_run", "output", "raises", "session", "title", "workers"}


@dataclass(frozen=True)
class Fence:
    """One code block.

    Attributes:
        page: path from the repository's root.
        line: of its first line of code, counted from 1.
        language: such as ``"python"``; ``""`` for none.
        settings: the rest of the info string.
        text: the code.
        printed: what it must print, or None for anything.
    """

    page: str
    line: int
    language: str
    text: str
    settings: dict[str, str] = field(default_factory=dict)
    printed: str | None = None

    @property
    def name(self) -> str:
        """Where it is, as an editor opens it."""
        return f"{self.page}:{self.line}"

    @property
    def session(self) -> str:
        """The process that it runs in."""
        return f"{self.page}#{self.settings.get('session', '')}"


def fences(path: Path) -> list[Fence]:
    """The code blocks of one page, in order.

    Raises:
        ValueError: for a block without an end, or a setting that does not exist.
    """
    page = path.relative_to(ROOT).as_posix()
    found: list[Fence] = []
    lines = iter(enumerate(path.read_text("utf-8").splitlines(), start=1))
    for number, line in lines:
        opened = _OPEN.match(line)
        if opened is None:
            continue
        text: list[str] = []
        for _, inner in lines:
            if inner.strip() == opened["marks"]:
                break
            text.append(inner.removeprefix(opened["indent"]))
        else:
            raise ValueError(f"{page}:{number}: a code block has no end")
        settings = dict(_SETTING.findall(opened["rest"]))
        if _SETTING.sub("", opened["rest"]).strip() or not settings.keys() <= KNOWN:
            raise ValueError(f"{page}:{number}: {opened['rest'].strip()!r} is no setting")
        code = "\n".join(text) + "\n"
        if "output" in settings:
            found[-1] = dataclasses.replace(found[-1], printed=code)
        found.append(Fence(page, number + 1, opened["language"], code, settings))
    return found


def all_fences(language: str) -> list[Fence]:
    """The blocks of a language, on all pages."""
    return [f for path in PAGES for f in fences(path) if f.language == language]
