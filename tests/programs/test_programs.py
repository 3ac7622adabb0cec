"""Every program under every strategy, compared with plain Keras on one device.

A column runs its programs in one process (or one job of two workers), one after the other; the
tests below read what they left.
"""

from __future__ import annotations

import re
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.programs import columns, page
from tests.programs.compare import differences
from tests.programs.kinds import KINDS
from tests.programs.table import PROGRAMS, Program
from tests.support import at_once

pytestmark = pytest.mark.slow

# What one device shows, every other column shows nearly as well.
_EXHAUSTIVE = ("one_device",)
# One of a kind.
REPRESENTATIVES = {
    next(p.name for p in PROGRAMS.values() if p.always and p.kind == kind) for kind in KINDS
}


class Table:
    """The columns that the chosen tests need."""

    def __init__(self, folder: Path, needed: dict[str, list[str]]) -> None:
        self._folder = folder
        self._pool = ThreadPoolExecutor(max_workers=at_once())
        self._runs: dict[str, Future[str]] = {
            column: self._pool.submit(columns.run, folder / column, column, programs)
            for column, programs in needed.items()
        }

    def result(self, column: str, name: str, rank: int = 0) -> dict[str, Any]:
        printed = self._runs[column].result()
        found = columns.result(self._folder / column, name, rank)
        assert found is not None, (
            f"{column} gave nothing for {name}. It printed:\n{printed[-6000:]}"
        )
        return found

    def numbers(self, column: str, name: str, rank: int = 0) -> Any:
        found = self.result(column, name, rank)
        assert "error" not in found, f"{name} under {column}: {found.get('traceback', found)}"
        return found["numbers"]

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def table(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    asked: dict[str, set[str]] = {}
    for item in request.session.items:
        if "table" in getattr(item, "fixturenames", ()) and item.path == Path(__file__):
            parameters = item.callspec.params
            asked.setdefault(parameters["strategy"], set()).add(parameters["name"])
    asked[columns.PLAIN] = set().union(*asked.values())
    needed = {
        column: [name for name in PROGRAMS if name in asked[column]]
        for column in columns.COLUMNS
        if column in asked
    }
    made = Table(tmp_path_factory.mktemp("programs"), needed)
    yield made
    made.close()


# A mesh of two processes differs from one of one in how whole values are read and broadcast: here
# in a check of a train_step and of a test_step. The conformance suite has a column of it too.
_OF_WORKERS = ("diffusion_judged_by_its_batch",)


# Each kind is run where most of it can go wrong. Workers exchange what the replicas of one process
# do not: whole batches, state, seeds, parts of batches, empty replicas. A mesh has no replicas; its
# variables, operations, host and loops are other ones. On the replicas of one process
# tests/distribute compares losses, gradients, embeddings and state with plain Keras in every run.
_KINDS = {
    "mirrored": (2, 10, 11, 12, 13, 17, 18),
    "workers": (1, 3, 6, 7, 8, 14, 16),
    "mesh": (4, 5, 9, 10, 11, 12, 13, 15, 16),
}


def _pair(strategy: str, program: Program) -> Any:
    chosen = _OF_WORKERS if strategy == "mesh_of_workers" else REPRESENTATIVES
    always = program.name in chosen and strategy not in _EXHAUSTIVE
    always = always and program.kind in _KINDS.get(strategy, KINDS)
    marks = () if always else (pytest.mark.exhaustive,)
    return pytest.param(strategy, program.name, marks=marks)


PAIRS = [_pair(strategy, p) for strategy in columns.STRATEGIES for p in PROGRAMS.values()]


@pytest.mark.parametrize(("strategy", "name"), PAIRS)
def test_comes_out_as_on_one_device(table: Table, strategy: str, name: str) -> None:
    program = PROGRAMS[name]
    if program.needs:
        pytest.importorskip(program.needs)
    if strategy in program.refused:
        error = table.result(strategy, name).get("error", "nothing")
        assert re.search(rf"Error: tfaccel: .*{program.refused[strategy]}", error), error
        return
    want = table.numbers(columns.PLAIN, name)
    fallbacks = table.result(strategy, name)["fallbacks"]
    assert bool(fallbacks) == program.falls_back(strategy), fallbacks
    for rank in range(columns.COLUMNS[strategy].workers):
        found = differences(want, table.numbers(strategy, name, rank), program.rtol)
        assert not found, "\n".join(found)


@pytest.mark.parametrize("number", KINDS)
def test_every_kind_has_two_programs_of_which_one_always_runs(number: int) -> None:
    of_kind = [p for p in PROGRAMS.values() if p.kind == number]
    assert len(of_kind) >= 2
    assert any(p.always for p in of_kind)
    assert any(number in kinds for kinds in _KINDS.values())


def test_the_page_lists_what_the_table_expects() -> None:
    assert page.PAGE.read_text("utf-8") == page.text(), "run python -m tests.programs.page"
