"""The table sees a gradient's scale: each row fails where gradients are half as large."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.cases import CASES
from tests.conformance.test_conformance import ROOT, TIME_LIMIT_S, assert_equal, comparison
from tests.support import environment

pytestmark = [pytest.mark.exhaustive, pytest.mark.slow]

# Rows whose subject hides the scale of gradients.
UNSEEN = {
    "batch_norm": "of replicas compares workers alone",
    "global_clipnorm": "every step is clipped",
    "lion": "steps by the sign",
    "mixed_float16_overflow": "every step overflows",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    column = [sys.executable, "-m", "tests.conformance.column"]
    for name, flags in {"plain": [], "halved": ["--halved"]}.items():
        found[name] = tmp_path_factory.mktemp(name)
        subprocess.run(
            [*column, str(found[name]), "--only", ",".join(CASES), *flags],
            cwd=ROOT,
            env=environment(),
            timeout=TIME_LIMIT_S,
            check=True,
        )
    return found


def result(folder: Path, case: str) -> dict[str, Any]:
    found: dict[str, Any] = pickle.loads((folder / f"{case}.rank0.pickle").read_bytes())
    return found


def is_seen(case: str, plain: dict[str, Any], halved: dict[str, Any]) -> bool:
    compared, rtol, atol = comparison(case, plain)
    try:
        for key in compared:
            if key in plain:
                assert_equal(plain[key], halved[key], key, rtol, atol)
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize("case", CASES)
def test_half_a_gradient_is_seen(folders: dict[str, Path], case: str) -> None:
    plain, halved = (result(folders[name], case) for name in ("plain", "halved"))
    assert "error" not in plain
    assert "error" not in halved
    assert is_seen(case, plain, halved) == (case not in UNSEEN)
