"""A program of the table: a script as a user would write it, in a function that returns numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Numbers = dict[str, Any]
PROGRAMS: dict[str, Program] = {}


@dataclass(frozen=True)
class Program:
    """One row of the table.

    Attributes:
        name: the function's name.
        kind: the number of its kind in `tests.programs.kinds`.
        about: the first line of its docstring.
        run: takes a strategy, and a folder that all workers share if `needs_folder`; returns what
            is compared with plain Keras: nested dicts and lists of numbers and texts.
        refused: columns under which it is refused, and a regular expression of the line.
        undivided: whether a mesh computes steps of it whole, by each process on its host.
        all_rows: whether every replica runs steps of it over all rows.
        always: whether it may stand for its kind in every run of the tests, which take the first
            of each; others are `exhaustive`.
        rtol: how near to one device.
        needs: a package without which it is skipped.
    """

    name: str
    kind: int
    about: str
    run: Callable[..., Numbers]
    needs_folder: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)
    undivided: bool = False
    all_rows: bool = False
    always: bool = False
    rtol: float = 1e-4
    needs: str = ""

    def falls_back(self, column: str) -> bool:
        """Whether steps of it are not shared among the devices of a column."""
        return self.undivided if column in MESHES else self.all_rows and column in REPLICATED


MESHES = ("mesh", "mesh_of_workers")
REPLICATED = ("mirrored", "workers")


def program(kind: int, **row: Any) -> Callable[[Callable[..., Numbers]], Callable[..., Numbers]]:
    """Puts a function into the table."""

    def added(run: Callable[..., Numbers]) -> Callable[..., Numbers]:
        code: Any = run.__code__
        about = (run.__doc__ or "").strip().splitlines()[0].rstrip(".")
        assert run.__name__ not in PROGRAMS, f"two programs are called {run.__name__}"
        needs_folder = code.co_argcount == 2
        PROGRAMS[run.__name__] = Program(run.__name__, kind, about, run, needs_folder, **row)
        return run

    return added
