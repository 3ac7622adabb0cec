"""Writes docs/programs.md from the table.

Usage: python -m tests.programs.page
"""

from __future__ import annotations

from pathlib import Path

from tests.programs.columns import COLUMNS, STRATEGIES
from tests.programs.kinds import KINDS
from tests.programs.program import MESHES
from tests.programs.table import PROGRAMS, Program

PAGE = Path(__file__).parents[2] / "docs" / "programs.md"

HEAD = """\
# Supported program patterns

What public scripts do beyond a plain `compile` and `fit`, kind by kind, and what becomes of it.
Every row is a small program of `tests/programs`, with nothing changed but the strategy and its
scope. It runs under plain Keras and under

{columns};

losses, metrics, predictions and weights are compared in float32.

- **same**: plain Keras's numbers, within a relative 1e-4, on every worker;
- **same, undivided**: plain Keras's numbers; each process computes the whole step on its host,
  which gains neither speed nor memory, and is logged;
- **same, over all rows**: plain Keras's numbers; every replica runs the step over all rows of the
  batch, which gains no speed, and is logged;
- **refused**: one line that says what to write instead, before anything is trained.

Written by `python -m tests.programs.page` from the table that the tests check.
"""


def text() -> str:
    """The page."""
    titles = [COLUMNS[name].title for name in STRATEGIES]
    made = HEAD.format(columns=",\n".join(titles[:-1]) + f"\nand {titles[-1]}")
    for number, kind in KINDS.items():
        made += f"\n## {kind.title}\n\n{kind.what}\n\n| program | |\n| --- | --- |\n"
        for program in PROGRAMS.values():
            if program.kind == number:
                made += f"| {program.about} (`{program.name}`) | {_outcome(program)} |\n"
        if kind.change:
            made += f"\n{kind.change}\n"
    return made


def _outcome(program: Program) -> str:
    told: dict[str, list[str]] = {}
    for strategy in STRATEGIES:
        if strategy in program.refused:
            line = f"refused: “{program.refused[strategy].replace('.*', '…')}”"
        elif strategy in MESHES and program.undivided:
            line = "same, undivided"
        elif program.falls_back(strategy):
            line = "same, over all rows"
        else:
            line = "same"
        title = COLUMNS[strategy].title
        if title.startswith(tuple(told.get(line, ()))):  # a mesh, in two processes too
            continue
        told.setdefault(line, []).append(title)
    if list(told) == ["same"]:
        return "same"
    parts = [f"{line} ({', '.join(where)})" for line, where in told.items()]
    return "; ".join(parts).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(text(), "utf-8")
