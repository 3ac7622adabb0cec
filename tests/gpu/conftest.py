"""Trains every column that the chosen tests need, side by side on a GPU.

    python -m pytest -m gpu tests/gpu

Without a GPU the tests are skipped; `TFACCEL_GPU_TESTS_ON=cpu` tries them on logical CPUs.
`TFACCEL_GPU_TESTS_OUT=FILE` adds a line of JSON to FILE as each row is trained and compared.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.column import record
from tests.gpu.columns import COLUMNS, Column
from tests.support import run_child

LIMIT_S = {"gpu": 170.0, "cpu": 1500.0}  # of a column, all its rows
AT_ONCE = {"gpu": 7, "cpu": 1}
TRIES = 4  # a row that ends the process does not take the others with it
ALL_GPUS = "0,1,2,3,4,5,6,7"


@pytest.fixture(scope="session")
def on() -> str:
    """`gpu`, or `cpu` when that is requested."""
    asked = os.environ.get("TFACCEL_GPU_TESTS_ON", "gpu")
    assert asked in ("gpu", "cpu"), f"TFACCEL_GPU_TESTS_ON is {asked!r}; expected gpu or cpu"
    if asked == "gpu" and not gpus():
        pytest.skip("no GPU that TensorFlow sees; TFACCEL_GPU_TESTS_ON=cpu tries on logical CPUs")
    return asked


def gpus() -> int:
    """How many there are; requested without starting them."""
    import tensorflow as tf

    return len(tf.config.list_physical_devices("GPU"))


def visible(column: Column | None = None) -> str:
    """What CUDA shows to the child of a column: the first GPU alone, unless it uses more."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES", ALL_GPUS)
    return given if column is not None and column.real else given.partition(",")[0]


class Results:
    """What the columns gave."""

    def __init__(self, folder: Path, on: str, needed: dict[str, list[str]]) -> None:
        self._folder = folder
        self._on = on
        self._end = time.monotonic() + LIMIT_S[on] * (1 if on == "gpu" else len(needed))
        self.record_to = os.environ.get("TFACCEL_GPU_TESTS_OUT", "")
        self._pool = ThreadPoolExecutor(AT_ONCE[on])
        self._runs: dict[str, Future[str]] = {
            name: self._pool.submit(self._run, name, needed[name])
            for name in COLUMNS
            if name in needed
        }

    def of(self, column: str, row: str, rank: int = 0) -> dict[str, Any]:
        said = self._runs[column].result()
        path = self._folder / column / f"{row}.rank{rank}.pickle"
        if not path.exists():
            pytest.fail(f"{column} gave no result for {row}:\n{said[-4000:]}", pytrace=False)
        result: dict[str, Any] = pickle.loads(path.read_bytes())
        if "error" in result:
            pytest.fail(f"{row} under {column}:\n{result['error'][-4000:]}", pytrace=False)
        return result

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _run(self, name: str, rows: list[str]) -> str:
        column, out = COLUMNS[name], self._folder / name
        out.mkdir()
        said = ""
        for _ in range(TRIES):
            left = [row for row in rows if not self._ended(out, row, column.workers)]
            limit_s = min(LIMIT_S[self._on], self._end - time.monotonic())
            if not left or limit_s < 1:
                break
            command = ["-m", "tests.gpu.column", str(out), "--column", name, "--on", self._on]
            command += ["--only", ",".join(left), "--record", self.record_to]
            env = {"CUDA_VISIBLE_DEVICES": visible(column)}
            if self._on == "cpu":
                # Without oneDNN a function's fused convolutions are not those of eager steps.
                env = {"CUDA_VISIBLE_DEVICES": "-1", "TF_ENABLE_ONEDNN_OPTS": "1"}
            try:
                said = run_child(
                    command, workers=column.workers, env=env, limit_s=limit_s, full=True
                )
            except AssertionError as error:
                said = str(error)
                self._blame(name, out, left, said)
        return said

    def _blame(self, name: str, out: Path, left: list[str], said: str) -> None:
        """Writes down in which row the process ended, so that the next try goes on after it."""
        begun = [row for row in left if list(out.glob(f"{row}.rank*.begun"))]
        guilty = begun[-1] if begun else left[0]
        if self._ended(out, guilty, COLUMNS[name].workers):
            return  # it has said itself what was wrong
        for rank in range(COLUMNS[name].workers):
            path = out / f"{guilty}.rank{rank}.pickle"
            if not path.exists():
                path.write_bytes(pickle.dumps({"error": f"the process ended in this row\n{said}"}))
        line = {"column": name, "row": guilty, "trained": False, "error": said[-3000:]}
        record(self.record_to, line)

    def _ended(self, out: Path, row: str, workers: int) -> bool:
        return all((out / f"{row}.rank{rank}.pickle").exists() for rank in range(workers))


@pytest.fixture(scope="session")
def results(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, on: str
) -> Iterator[Results]:
    needed: dict[str, list[str]] = {}
    for item in request.session.items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        name = parameters.get("column")
        row = parameters.get("row", COLUMNS[name].rows[0] if name in COLUMNS else "")
        if name in COLUMNS and "gpu" in item.keywords and not missing(name, on, row):
            for column in (name, "plain"):
                if row not in needed.setdefault(column, []):
                    needed[column].append(row)
    made = Results(tmp_path_factory.mktemp("gpu"), on, needed)
    yield made
    made.close()


def missing(name: str, on: str, row: str = "") -> str:
    """Why a column, or a row under it, cannot run here, or nothing."""
    column = COLUMNS[name]
    if on == "cpu" and row == "cnn_last_batch_of_one" and name != "one_device":
        # TensorFlow 2.21; the replicas' statistics then have different shapes.
        return "no GPU: oneDNN gives a convolution of no rows the shape of its input"
    if on == "cpu":
        return f"no GPU: {column.gpu_only}" if column.gpu_only else ""
    if column.real and gpus() < column.devices:
        return f"no GPU for each replica: {column.devices} needed, {gpus()} found"
    if column.options.get("communication") == "mpi":
        from tfaccel.distribute.collectives import mpi_startup

        return "" if mpi_startup.is_installed() else "no MPI"
    return ""
