"""The columns of the table: a process or a job each, started again when a program breaks it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.programs.run import AGAIN, NOT_DONE
from tests.support import run_child, run_forked


@dataclass(frozen=True)
class Column:
    """One strategy.

    Attributes:
        title: what the docs call it.
        options: arguments of `tests.programs.run`.
        workers: how many processes.
    """

    title: str
    options: tuple[str, ...]
    workers: int = 1


PLAIN = "plain"
COLUMNS = {
    PLAIN: Column("plain Keras", ("--strategy", "plain")),
    "one_device": Column("`one_device`", ("--strategy", "one_device")),
    "mirrored": Column("`mirrored`, 2 devices", ("--strategy", "mirrored", "--devices", "2")),
    "workers": Column(
        "`multi_worker_mirrored`, 2 workers", ("--strategy", "multi_worker_mirrored"), workers=2
    ),
    "mesh": Column(
        "`model_parallel`, `batch=2,model=2`",
        ("--strategy", "model_parallel", "--devices", "4", "--mesh", "batch=2,model=2"),
    ),
    "mesh_of_workers": Column(
        "`model_parallel`, `batch=2,model=2` in 2 processes",
        ("--strategy", "model_parallel", "--devices", "2", "--mesh", "batch=2,model=2"),
        workers=2,
    ),
}
STRATEGIES = [name for name in COLUMNS if name != PLAIN]


def run(out: Path, column: str, programs: Sequence[str]) -> str:
    """Runs `programs` one after the other; returns what was printed.

    A program that ends or blocks its process costs that program alone: the process is started
    again behind it.
    """
    out.mkdir(parents=True, exist_ok=True)
    ranks = range(COLUMNS[column].workers)
    left, printed = list(programs), ""
    while left:
        words = ["tests.programs.run", str(out), *COLUMNS[column].options]
        words += ["--only", ",".join(left)]
        env, codes = {"TF_CPP_MIN_LOG_LEVEL": "3"}, (0, AGAIN)
        try:
            if len(ranks) == 1:
                printed += run_forked(words, env=env, codes=codes)
            else:
                printed += run_child(["-m", *words], workers=len(ranks), env=env, codes=codes)
        except AssertionError as error:
            printed += str(error)
        begun = [name for name in left if result(out, name) is not None]
        if not begun:
            break
        # The last one begun may have been begun by one worker alone, while the other was busy
        # with the program before, which broke both: it has another turn.
        last, before = begun[-1], begun[:-1]
        states = [result(out, last, rank) for rank in ranks]
        if before and None in states:
            (out / f"{last}.rank{states.index(None) ^ 1}.json").unlink()
            begun = before
        left = [name for name in left if name not in begun]
    return printed


def result(out: Path, program: str, rank: int = 0) -> dict[str, Any] | None:
    """What a worker left for a program, or None."""
    path = out / f"{program}.rank{rank}.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def died(found: dict[str, Any]) -> bool:
    """Whether a program ended its process or blocked it."""
    return found.get("error") == NOT_DONE
