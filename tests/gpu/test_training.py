"""On a GPU, training under a strategy gives the numbers of plain Keras on that GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.gpu.column import record
from tests.gpu.columns import COLUMNS, PAIRS
from tests.gpu.conftest import Results, missing

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

# A GPU adds in another order each time, and its convolutions are of several kinds.
RTOL = {"gpu": 1e-3, "cpu": 1e-4}
ATOL = {"gpu": 3e-5, "cpu": 1e-6}
EQUAL = ("history", "evaluate", "predict", "weights", "batches", "iterations")


@pytest.mark.parametrize(("column", "row"), PAIRS)
def test_equals_plain_keras(results: Results, on: str, column: str, row: str) -> None:
    skip_where_it_cannot_run(column, on, row)
    got = results.of(column, row)
    assert got["replicas"] == COLUMNS[column].replicas
    assert got.get("copies_equal", True), "the replicas of one process hold different weights"
    if row == "dropout":
        assert_masks(got, COLUMNS[column].replicas)
        return
    want = results.of("plain", row)

    from tests.gpu.rows import ROWS

    case = ROWS.get(row)
    rtol = max(case.rtol if case else 0, RTOL[on])
    atol = rtol if rtol > 1e-3 else ATOL[on]
    compared = [k for k in (case.equal if case else EQUAL) if k in want or k in got]
    assert compared
    apart = {key: distance(want[key], got[key]) for key in compared}
    line = {"column": column, "row": row, "largest_difference": apart}
    record(results.record_to, {**line, "rtol": rtol, "atol": atol})
    for key in compared:
        assert_close(want[key], got[key], key, rtol, atol)


@pytest.mark.parametrize("column", [c for c in COLUMNS if c != "plain"])
def test_weights_lie_on_the_devices(results: Results, on: str, column: str) -> None:
    skip_where_it_cannot_run(column, on)
    for rank in range(COLUMNS[column].workers):
        got = results.of(column, COLUMNS[column].rows[0], rank)
        names = [f"{on.upper()}:{i}" for i in range(COLUMNS[column].devices)]
        assert got["devices"].tolist() == names


@pytest.mark.parametrize(
    ("column", "row"), [(c, r) for c, r in PAIRS if COLUMNS[c].workers > 1 and r != "save_and_load"]
)
def test_workers_hold_the_same_bits(results: Results, on: str, column: str, row: str) -> None:
    skip_where_it_cannot_run(column, on, row)
    ours, theirs = (results.of(column, row, rank)["weights"] for rank in range(2))
    assert [w.tobytes() for w in ours] == [w.tobytes() for w in theirs]


def skip_where_it_cannot_run(column: str, on: str, row: str = "") -> None:
    if why := missing(column, on, row):
        pytest.skip(why)


def assert_masks(got: dict[str, Any], replicas: int) -> None:
    assert got["repeated"], "two runs of one seed dropped different units"
    kept_of_eight = got["own_masks"] * 8
    together = np.mod(np.round(kept_of_eight), max(2, replicas))
    assert np.any(together != 0), "every replica kept the same units"


def pairs(want: Any, got: Any) -> list[tuple[np.ndarray, np.ndarray, str]]:
    """The arrays of two nests of one structure, with the path of each."""
    if isinstance(want, dict):
        assert set(want) == set(got)
        return [(a, b, f"[{k}]{p}") for k in want for a, b, p in pairs(want[k], got[k])]
    if isinstance(want, (list, tuple)):
        assert len(want) == len(got)
        both = enumerate(zip(want, got, strict=True))
        return [(a, b, f"[{i}]{p}") for i, (w, g) in both for a, b, p in pairs(w, g)]
    return [(np.asarray(want, "float64"), np.asarray(got, "float64"), "")]


def distance(want: Any, got: Any) -> float:
    """The largest absolute difference, for the record."""
    return max((float(np.max(np.abs(a - b), initial=0)) for a, b, _ in pairs(want, got)), default=0)


def assert_close(want: Any, got: Any, where: str, rtol: float, atol: float) -> None:
    for a, b, path in pairs(want, got):
        np.testing.assert_allclose(b, a, rtol=rtol, atol=atol, err_msg=where + path)
