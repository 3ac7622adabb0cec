"""The columns of the coverage table: each a child process that is started again when it breaks."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.model_parallel.coverage.run import AGAIN, file_name
from tests.support import environment

ROOT = Path(__file__).parents[3]
TIME_LIMIT_S = 2400

ONE = "none"
WHOLE = "batch=2,model=2"
NARROW = ("batch=4,model=1", "batch=1,model=4")


def parts(rows: Sequence[str], number: int) -> list[list[str]]:
    """Parts of `rows` that take about as long: each row goes to the next part in turn."""
    return [part for first in range(number) if (part := list(rows[first::number]))]


def run(out: Path, mesh: str, rows: Sequence[str] = ()) -> str:
    """Runs rows on a mesh, all when none is named; returns what was printed."""
    command = [sys.executable, "-m", "tests.model_parallel.coverage.run", str(out)]
    command += ["--mesh", mesh, "--only", ",".join(rows)]
    printed = ""
    while True:
        process = subprocess.run(
            command,
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIME_LIMIT_S,
            check=False,
        )
        printed += process.stdout
        # A killed process has left the row that killed it behind, so that each turn ends later.
        if process.returncode != AGAIN and process.returncode >= 0:
            return printed


def result(out: Path, row: str) -> dict[str, Any] | None:
    """What a column left for a row, or None."""
    path = out / f"{file_name(row)}.pickle"
    return pickle.loads(path.read_bytes()) if path.exists() else None
