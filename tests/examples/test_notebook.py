"""The notebook is the first example: the same code, and a result that keeps the same promise."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "digits.ipynb"
SCRIPT = ROOT / "examples" / "digits.py"
BYTES = 100_000


def cells(kind: str, of: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in of["cells"] if cell["cell_type"] == kind]


def accuracy(of: dict[str, Any]) -> float:
    """What its last code cell printed."""
    printed = "".join("".join(each["text"]) for each in cells("code", of)[-1]["outputs"])
    (found,) = re.findall(r"^held-out accuracy: ([\d.]+)$", printed, re.MULTILINE)
    return float(found)


def promised() -> float:
    """What the script says of itself."""
    said = ast.get_docstring(ast.parse(SCRIPT.read_text("utf-8"))) or ""
    (found,) = re.findall(r"accuracy of at least ([\d.]+)", said)
    return float(found)


def functions(source: str) -> dict[str, str]:
    return {
        node.name: ast.unparse(node)
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name != "main"
    }


SAVED = json.loads(NOTEBOOK.read_text("utf-8"))


def test_it_has_the_functions_of_the_script() -> None:
    code = "\n".join("".join(cell["source"]) for cell in cells("code", SAVED))
    assert functions(code) == functions(SCRIPT.read_text("utf-8"))


def test_it_is_saved_with_its_outputs_and_stays_small() -> None:
    assert NOTEBOOK.stat().st_size < BYTES
    outputs = [each for cell in cells("code", SAVED) for each in cell["outputs"]]
    assert sum("image/png" in each.get("data", {}) for each in outputs) == 2
    assert [each for each in outputs if each["output_type"] == "error"] == []
    counted = [cell["execution_count"] for cell in cells("code", SAVED)]
    assert counted == list(range(1, len(counted) + 1)), "it was not run from its top to its end"
    assert accuracy(SAVED) >= promised()


@pytest.mark.slow
def test_it_runs_and_keeps_the_promise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    assert accuracy(notebook) >= promised()
    assert accuracy(notebook) == pytest.approx(accuracy(SAVED), abs=0.02)
