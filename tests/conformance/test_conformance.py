"""Every case of the table under every strategy, compared with plain Keras on one device.

A column runs its cases in one process (or one job of two workers); the tests below read what it
left.
"""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conformance.cases import CASES
from tests.conformance.data import ROWS
from tests.conformance.scripts import SCRIPTS
from tests.support import at_once, environment, run_forked

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TIME_LIMIT_S = 1500


@dataclass(frozen=True)
class Column:
    """One strategy of the table."""

    strategy: str
    workers: int
    devices: int
    mesh: str = ""
    layouts: str = ""
    communication: str = "auto"

    @property
    def replicas(self) -> int:
        return 1 if self.mesh else self.workers * self.devices

    @property
    def shares(self) -> int:
        """How many parts a batch is cut into."""
        batch = re.search(r"batch=(\d+)", self.mesh)
        return int(batch[1]) if batch else self.replicas

    def command(self, out: str) -> list[str]:
        module = ["tests.conformance.column", out, "--strategy", self.strategy]
        module += ["--devices", str(self.devices), "--communication", self.communication]
        if self.mesh:
            module += ["--mesh", self.mesh, "--layouts", self.layouts]
        if self.workers == 1:
            return [sys.executable, "-m", *module]
        launch = [sys.executable, "-m", "tfaccel.cli", "launch", "--nproc", str(self.workers)]
        return [*launch, "--show=all", "-m", "--", *module]


COLUMNS = {
    "plain": Column("plain", 1, 1),
    "one_device": Column("one_device", 1, 1),
    "mirrored_4": Column("mirrored", 1, 4),
    "ring_2x2": Column("multi_worker_mirrored", 2, 2, communication="ring"),
    "ring_2x1": Column("multi_worker_mirrored", 2, 1, communication="ring"),
    "mpi_2x1": Column("multi_worker_mirrored", 2, 1, communication="mpi"),
    "mpi_2x2": Column("multi_worker_mirrored", 2, 2, communication="mpi"),
    "mirrored_2": Column("mirrored", 1, 2),
    "mesh_2x2": Column("model_parallel", 2, 2, "batch=2,model=2", "auto"),
}
EVERY_CASE = [*CASES, *SCRIPTS]
# What strategies run in every run of the tests: one of each kind, and what depends on the
# transport, on the number of processes or on whether a batch divides. Models, loops and batches of
# which tests/programs has a kind are left to it, and to tests/distribute the losses, weights and
# masks that it compares on the same replicas.
PART = (
    *("arrays", "tf_data", "generator", "pydataset"),
    *("fewer_rows_than_replicas", "dict_inputs_two_outputs", "optional_input"),
    *("loss_of_the_batch", "layer_state", "metric_auc", "gradient_accumulation"),
    *("mixed_bfloat16", "overflow_on_one_replica", "run_eagerly", "steps_per_execution"),
    *("batch_norm_synchronized", "embedding_sparse_gradients", "on_batch"),
    *("csv_and_tensorboard", "save_and_load", "checkpoints", "batch_norm_in_the_file", "dropout"),
    *("sees_every_row_once", "distributed_by_hand", "loop_by_hand", "refusals"),
    "swap_ema_weights",
    "model_outside",
    "one_row_of_an_image_in_a_train_step",
)
# Of these tests/distribute compares replicas of one process with plain Keras, and tests/programs
# has loops by hand; sixteen bits are in the row of an overflow too.
_NOT_OF_ONE_PROCESS = (
    *("steps_per_execution", "layer_state", "loop_by_hand", "loss_of_the_batch", "on_batch"),
    *("batch_norm_synchronized", "embedding_sparse_gradients", "mixed_bfloat16"),
)
# Four replicas of two processes are the slowest: one of each kind of tensor that travels (dense,
# sparse, an overflow), and processes whose replicas get no row. State and statistics travel as
# dense ones do, and gathered rows do so in tests/programs.
_OVER_RINGS = (
    *("arrays", "fewer_rows_than_replicas"),
    *("embedding_sparse_gradients", "overflow_on_one_replica"),
)
# Of these each process does what a replica of `mirrored_2` does, and sends what others send too.
_NOT_OF_PROCESSES = (
    *("swap_ema_weights", "dict_inputs_two_outputs", "optional_input", "metric_auc", "pydataset"),
    *("model_outside", "one_row_of_an_image_in_a_train_step"),
    # Pipelines and state of workers are in tests/programs in every run, accumulated gradients in
    # tests/distribute/test_sync_frequency.py, and what the chief alone writes in test_workers.py.
    *("tf_data", "layer_state", "gradient_accumulation"),
    *("csv_and_tensorboard", "checkpoints"),
)
# These go no way of their own on a mesh: a batch is one tensor there, of whatever rows and source,
# an optimizer's formula is one of whole variables, and a metric's one of whole tensors; layers are
# the subject of tests/model_parallel/coverage.
_NOT_OF_A_MESH = (
    *("swap_ema_weights", "overflow_on_one_replica", "batch_norm_synchronized"),
    *("tf_data", "pydataset", "fewer_rows_than_replicas", "on_batch"),
    *("metric_auc", "optional_input"),
    *("generator", "dict_inputs_two_outputs", "gradient_accumulation"),
    # Rows of an embedding, loops and what is made outside are in tests/programs; eager steps in
    # tests/model_parallel/test_host_fallback.py, and files in test_files.py.
    *("embedding_sparse_gradients", "loop_by_hand", "model_outside"),
    *("run_eagerly", "csv_and_tensorboard", "checkpoints"),
    "one_row_of_an_image_in_a_train_step",
)
_IN_EVERY_RUN = {
    "mirrored_2": tuple(case for case in PART if case not in _NOT_OF_ONE_PROCESS),
    "ring_2x2": _OVER_RINGS,
    "mpi_2x1": tuple(case for case in PART if case not in _NOT_OF_PROCESSES),
    "mesh_2x2": tuple(case for case in PART if case not in _NOT_OF_A_MESH),
}
STRATEGIES = [name for name in COLUMNS if name != "plain"]
DISTRIBUTED = [name for name in STRATEGIES if name != "one_device"]
MESHES = [name for name in DISTRIBUTED if COLUMNS[name].mesh]
REPLICATED = [name for name in DISTRIBUTED if name not in MESHES]


def always(column: str) -> set[str]:
    """The cases of a column in every run of the tests."""
    # What others would show, these show nearly as well; plain Keras is compared with.
    return set(PART) if column == "plain" else set(_IN_EVERY_RUN.get(column, ()))


def shown(columns: list[str], case: str) -> list[Any]:
    """As `pairs`, of one script whose results a test reads."""
    rare = pytest.mark.exhaustive
    return [(c, case) if case in always(c) else pytest.param(c, case, marks=rare) for c in columns]


def pairs(columns: list[str]) -> list[Any]:
    """A column and a case each for a parametrized test; some only when all is requested."""
    rare = pytest.mark.exhaustive
    return [
        (c, case) if case in always(c) else pytest.param(c, case, marks=rare)
        for c in columns
        for case in EVERY_CASE
    ]


# What a mesh refuses, and the line that says so.
NOT_ON_A_MESH = {
    "distributed_by_hand": "Unrecognized data type",
}


class Table:
    """The results of the cases that the chosen tests need, column by column."""

    def __init__(self, folder: Path, needed: dict[str, set[str]]) -> None:
        self._folder = folder
        self._pool = ThreadPoolExecutor(max_workers=at_once())
        self._runs: dict[str, Future[str]] = {
            name: self._pool.submit(self._run, name, needed[name])
            for name in COLUMNS
            if name in needed
        }

    def result(self, column: str, case: str, rank: int = 0) -> dict[str, Any]:
        output = self._runs[column].result()
        path = self._folder / column / f"{case}.rank{rank}.pickle"
        said = shortened(output)[-6000:]
        assert path.exists(), f"{column} gave no result for {case}. It printed:\n{said}"
        result = pickle.loads(path.read_bytes())
        if COLUMNS[column].mesh and case in NOT_ON_A_MESH:
            assert re.search(NOT_ON_A_MESH[case], result.get("error", "")), result
            pytest.skip("refused")
        assert "error" not in result, f"{case} under {column}:\n{result['error']}"
        return result

    def file(self, column: str, case: str, name: str) -> Path:
        return self._folder / column / "files" / case / name

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _run(self, name: str, needed: set[str]) -> str:
        only = [case for case in EVERY_CASE if case in needed]
        command = [*COLUMNS[name].command(str(self._folder / name)), "--only", ",".join(only)]
        if COLUMNS[name].workers == 1:
            try:
                return run_forked(command[2:], limit_s=TIME_LIMIT_S)
            except AssertionError as error:
                return str(error)
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            return process.communicate(timeout=TIME_LIMIT_S)[0]
        except subprocess.TimeoutExpired:
            process.terminate()  # the launcher stops its workers
            return process.communicate()[0] + f"\n(no end after {TIME_LIMIT_S} s)"


def shortened(output: str) -> str:
    """What was printed, without the calls of installed packages and of Python in its stacks."""
    lines, skipped = [], False
    for line in output.splitlines():
        is_call = re.search(r"^(\[\d\])? *File \".*\", line \d+, in ", line)
        skipped = bool(is_call and re.search(r"site-packages|lib/python3", line)) or (
            skipped and not is_call and re.search(r"^(\[\d\])?     ", line) is not None
        )
        if not skipped:
            lines.append(line)
    return "\n".join(lines)


def test_stacks_are_printed_without_the_calls_of_packages() -> None:
    call = '[0]   File "{}/keras/src/trainer.py", line 134, in fit\n[0]     return run()\n'
    package, own = call.format("/x/site-packages"), call.format("/x/tfaccel")
    assert shortened(f"first\n{package}{own}last") == f"first\n{own}last"


@pytest.fixture(scope="session")
def table(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    needed: dict[str, set[str]] = {}
    for item in request.session.items:
        if "table" in getattr(item, "fixturenames", ()) and item.path == Path(__file__):
            parameters = item.callspec.params
            needed.setdefault(parameters["column"], set()).add(parameters["case"])
    needed["plain"] = set().union(*needed.values())
    made = Table(tmp_path_factory.mktemp("conformance"), needed)
    yield made
    made.close()


def test_a_part_is_of_the_table() -> None:
    assert set(PART) <= set(EVERY_CASE)
    for left_out in (_NOT_OF_ONE_PROCESS, _NOT_OF_PROCESSES, _NOT_OF_A_MESH):
        assert set(left_out) <= set(PART)
    assert set(PART) == set().union(*(always(column) for column in STRATEGIES))
    assert set(_OVER_RINGS) <= always("mpi_2x1"), "what fails over rings alone is the ring's"


# Cases of which a strategy shares no work (`tests/fallbacks.py`).
_FALLS_BACK = {"run_eagerly": ("model_parallel",)}


@pytest.mark.parametrize(("column", "case"), pairs(STRATEGIES))
def test_equals_one_device(table: Table, column: str, case: str) -> None:
    got = table.result(column, case)
    assert got["replicas"] == COLUMNS[column].replicas
    if case in CASES:
        assert got["copies_equal"], "the replicas of one process hold different weights"
    compared, rtol, atol = comparison(case, got)
    if case == "batch_norm" and COLUMNS[column].replicas == 1:  # of the rows of the global batch
        compared = ("history", "evaluate", "predict", "weights")
    may_fall_back = _FALLS_BACK.get(case, ())
    assert not got["fallbacks"] or COLUMNS[column].strategy in may_fall_back, got["fallbacks"]
    want = table.result("plain", case) if compared else {}
    for key in compared:
        assert (key in want) == (key in got)
        if key in want:
            assert_equal(want[key], got[key], key, rtol, atol)


def comparison(case: str, got: dict[str, Any]) -> tuple[tuple[str, ...], float, float]:
    """Which results of a case are compared with one device's, and the tolerances for it."""
    if (row := CASES.get(case)) is not None:
        least = 1e-6 if row.rtol <= 1e-4 else row.rtol
        return row.equal, row.rtol, least if row.atol is None else row.atol
    if case in ("batch_norm_in_the_file", "distributed_by_hand"):
        return (), 1e-4, 1e-6  # other batches than one device has, on purpose
    compared = ("history", "weights", "predict", "iterations")
    return tuple(key for key in got if key in compared), 1e-4, 1e-6


@pytest.mark.parametrize(
    ("column", "case"), pairs([c for c in DISTRIBUTED if COLUMNS[c].workers > 1])
)
def test_workers_are_bit_identical(table: Table, column: str, case: str) -> None:
    chief, other = table.result(column, case), table.result(column, case, rank=1)
    assert chief["sha"] == other["sha"]
    for key in ("history", "evaluate", "predict", "batches"):
        if key in chief:
            assert_equal(chief[key], other[key], key, rtol=0, atol=0)


def assert_equal(want: Any, got: Any, where: str, rtol: float, atol: float) -> None:
    if isinstance(want, dict):
        assert set(want) == set(got), where
        for key in want:
            assert_equal(want[key], got[key], f"{where}[{key}]", rtol, atol)
    elif isinstance(want, (list, tuple)):
        assert len(want) == len(got), where
        for i, (a, b) in enumerate(zip(want, got, strict=True)):
            assert_equal(a, b, f"{where}[{i}]", rtol, atol)
    else:
        want, got = np.asarray(want, "float64"), np.asarray(got, "float64")
        np.testing.assert_allclose(got, want, rtol=rtol, atol=atol, err_msg=where)


@pytest.mark.parametrize(("column", "case"), shown(DISTRIBUTED, "dropout"))
def test_dropout_differs_between_replicas_and_repeats(table: Table, column: str, case: str) -> None:
    result = table.result(column, case)
    assert result["repeated"]
    kept_of_eight = result["own_masks"] * 8  # each part has 8 / shares of the rows
    together = np.mod(np.round(kept_of_eight), max(2, COLUMNS[column].shares))
    assert np.any(together != 0), "every replica kept the same units"


@pytest.mark.parametrize(("column", "case"), shown(DISTRIBUTED, "batch_norm_in_the_file"))
def test_saved_batch_norm_evaluates_the_same(table: Table, column: str, case: str) -> None:
    result = table.result(column, case)
    np.testing.assert_allclose(result["own_here"], result["own_file"], rtol=1e-5)


@pytest.mark.parametrize(("column", "case"), shown(list(COLUMNS), "sees_every_row_once"))
def test_an_unseeded_shuffle_covers_every_row(table: Table, column: str, case: str) -> None:
    squares = table.result(column, case)["history"]["squares"]
    assert squares.tolist() == [sum(i * i for i in range(ROWS))] * 3


@pytest.mark.parametrize(("column", "case"), shown(DISTRIBUTED, "csv_and_tensorboard"))
def test_the_log_file_has_one_line_an_epoch(table: Table, column: str, case: str) -> None:
    table.result(column, case)
    lines = table.file(column, case, "log.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["epoch", "0", "1"]


@pytest.mark.parametrize(("column", "case"), shown(DISTRIBUTED, "save_and_load"))
def test_a_saved_optimizer_is_keras_own(table: Table, column: str, case: str) -> None:
    written = table.result(column, case)["own_optimizer"]
    assert written == ["keras.optimizers", "Adam", 0.05]


@pytest.mark.parametrize(("column", "case"), shown(DISTRIBUTED, "checkpoints"))
def test_a_resumed_run_ends_with_its_backup_gone(table: Table, column: str, case: str) -> None:
    result = table.result(column, case)
    assert result["iterations"] == 12
    assert not result["left"]


REFUSED = {
    "jit_compile": "StrategyError: tfaccel: jit_compile=True .* compile with jit_compile='auto'",
    "unbatched": r"InputError: tfaccel: the dataset yields .* dataset.batch\(global_batch_size\)",
}


@pytest.mark.parametrize(("column", "case"), shown(REPLICATED, "refusals"))
@pytest.mark.parametrize("what", REFUSED)
def test_refuses_in_one_line(table: Table, column: str, case: str, what: str) -> None:
    said = json.loads(table.result(column, case)["said"])[what]
    assert "\n" not in said
    assert re.match(REFUSED[what], said), said


@pytest.mark.parametrize(("column", "case"), shown(REPLICATED, "refusals"))
def test_a_decorated_step_trains(table: Table, column: str, case: str) -> None:
    assert json.loads(table.result(column, case)["said"])["decorated_train_step"] == "nothing"


@pytest.mark.parametrize(("column", "case"), shown(REPLICATED, "refusals"))
def test_unsharded_data_is_refused_where_rows_would_repeat(
    table: Table, column: str, case: str
) -> None:
    said = json.loads(table.result(column, case)["said"])["autoshard_off"]
    if COLUMNS[column].workers > 1:
        assert "InputError: tfaccel: the dataset's auto_shard_policy is OFF" in said
    else:
        assert said == "nothing"


@pytest.mark.parametrize(("column", "case"), shown(MESHES, "refusals"))
def test_a_mesh_refuses_less(table: Table, column: str, case: str) -> None:
    said = json.loads(table.result(column, case)["said"])
    assert re.match(REFUSED["unbatched"], said["unbatched"]), said["unbatched"]
    for what in ("jit_compile", "decorated_train_step", "autoshard_off"):
        assert said[what] == "nothing"
