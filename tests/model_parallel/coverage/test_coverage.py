"""Each row of the table on meshes of four devices, compared with plain Keras on one device."""

from __future__ import annotations

import importlib.util
import re
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras
import pytest

from tests.model_parallel.coverage import columns
from tests.model_parallel.coverage.compare import Outcome, outcome
from tests.model_parallel.coverage.zoo import ZOO
from tests.support import at_once
from tfaccel.distribute.model_parallel.replicated_ops import REPLICATED_OPS

pytestmark = pytest.mark.slow

# Enough to see that the two other meshes are no different.
FEW = [
    "Dense",
    "Dense that does not divide",
    "Embedding with mask_zero",
    "Conv2D",
    "DepthwiseConv2D",
    "MaxPooling3D",
    "BatchNormalization of images",
    "LayerNormalization",
    "MultiHeadAttention causal",
    "LSTM with mask_zero",
    "Bidirectional LSTM with mask_zero and return_sequences",
    "Reshape that splits the features",
    "CTC",
    "AUC (metric)",
    "MeanIoU (metric)",
    "BertBackbone",
    "GemmaBackbone of one key head",
]


class Table:
    """The columns that the chosen tests need."""

    def __init__(self, folder: Path, needed: dict[str, list[str]]) -> None:
        self._folder = folder
        self._pool = ThreadPoolExecutor(max_workers=at_once())
        self._runs: dict[str, list[Future[str]]] = {
            mesh: [
                self._pool.submit(columns.run, folder / mesh, mesh, part)
                for part in columns.parts(rows, at_once())
            ]
            for mesh, rows in needed.items()
        }

    def result(self, mesh: str, row: str) -> dict[str, Any]:
        printed = "".join(half.result() for half in self._runs[mesh])
        found = columns.result(self._folder / mesh, row)
        assert found is not None, f"{mesh} gave no result for {row}. It printed:\n{printed[-6000:]}"
        return found

    def outcome(self, mesh: str, row: str) -> Outcome:
        return outcome(ZOO[row], self.result(columns.ONE, row), self.result(mesh, row))

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def table(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    needed: dict[str, list[str]] = {columns.ONE: []}
    for item in request.session.items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        if "row" in parameters and "mesh" in parameters:
            needed.setdefault(parameters["mesh"], []).append(parameters["row"])
    rows = list(dict.fromkeys(row for mesh_rows in needed.values() for row in mesh_rows))
    needed[columns.ONE] = rows
    made = Table(tmp_path_factory.mktemp("coverage"), needed)
    yield made
    made.close()


# One of each kind, which every run of the tests takes. Convolutions, normalizations and embeddings
# are in models that tests beside it train in every run, test_numbers.py and test_generate.py.
ALWAYS = {
    "Dense that does not divide",
    "MultiHeadAttention causal",
    "Reshape that splits the features",
    "GemmaBackbone of one key head",
    # Operations that each device runs on whole tensors: places that move, gradients of windows and
    # of convolutions, reversed sequences, strings, matrices.
    "Lambda of a roll",
    "Lambda of a reflecting pad",
    "DepthwiseConv2D",
    "Bidirectional LSTM with mask_zero and return_sequences",
    "Hashing with salt",
    "MeanIoU (metric)",
    # Steps that are not divided: by what a layer's options are, and by what a layer is.
    "Conv3D grouped",
    "RandomCrop",
}


def _pair(mesh: str, row: str, always: set[str]) -> Any:
    marks = () if row in always else (pytest.mark.exhaustive,)
    return pytest.param(mesh, row, marks=marks)


PAIRS = [
    *[_pair(columns.WHOLE, row, ALWAYS) for row in ZOO],
    # Models are trained on these meshes by tests/model_parallel/test_numbers.py in every run.
    *[_pair(mesh, row, set()) for mesh in columns.NARROW for row in FEW],
]


@pytest.mark.parametrize(("mesh", "row"), PAIRS)
def test_comes_out_as_expected(table: Table, mesh: str, row: str) -> None:
    package = ZOO[row].package
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    expected, _, what = ZOO[row].expected.partition(": ")
    got = table.outcome(mesh, row)
    if expected in ("refused", "undivided"):
        assert got.kind == expected, got
        assert re.search(what, got.text), got.text
    else:
        assert got.kind == "works", got
        replicated = sorted(set(REPLICATED_OPS) & table.result(mesh, row)["operations"])
        assert ", ".join(replicated) == what


def test_every_run_takes_a_row_of_each_outcome() -> None:
    outcomes = {row.expected.partition(":")[0] for row in ZOO.values()}
    assert {ZOO[row].expected.partition(":")[0] for row in ALWAYS} == outcomes


def test_every_replicated_operation_is_proven_by_a_row() -> None:
    proven = {
        name.strip()
        for row in ZOO.values()
        if row.expected.startswith("replicated: ")
        for name in row.expected.partition(": ")[2].split(",")
    }
    by_other_tests = {
        "BatchMatMulV3",  # test_quantize.py
        "CTCGreedyDecoder",  # test_operations.py, as the next two
        "MatrixSetDiagV3",
        "SparseToDense",
    }
    assert set(REPLICATED_OPS) == proven | by_other_tests


NOT_LAYERS = {
    "InputSpec",  # describes an input
    "InputLayer",  # in every functional model
    "Layer",
    "Wrapper",
    "RNN",  # in the rows of cells
    "LSTMCell",
    "GRUCell",
    "SimpleRNNCell",
    "FlaxLayer",  # of other frameworks
    "JaxLayer",
    "TorchModuleWrapper",
    "TFSMLayer",  # a saved program, which was laid out when it was saved
    "MaxNumBoundingBoxes",  # takes a dictionary of boxes, before training
}


@pytest.mark.parametrize("module", ["layers", "losses", "metrics"])
def test_every_class_of_keras_has_a_row(module: str) -> None:
    names: dict[type, set[str]] = {}
    for name, value in vars(getattr(keras, module)).items():
        if isinstance(value, type):
            names.setdefault(value, set()).add(name)
    covered = {name.split()[0] for name in ZOO} | NOT_LAYERS | {"Loss", "Metric", "Mean", "Sum"}
    assert [aliases for aliases in names.values() if not aliases & covered] == []
