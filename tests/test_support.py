"""What a child process of the tests finds, and what it is kept from."""

from __future__ import annotations

import json
import sys

import pytest

from tests.support import environment, run_child

# `find_spec` and `import` must say the same, of parts of a package too.
LOOK = """
import importlib, importlib.util, json
def imported(name):
    try:
        return bool(importlib.import_module(name))
    except ModuleNotFoundError:
        return False
names = ["left_out", "left_out.part", "found"]
print(json.dumps([[bool(importlib.util.find_spec(n.split(".")[0])), imported(n)] for n in names]))
"""


@pytest.fixture
def packages(tmp_path, monkeypatch: pytest.MonkeyPatch):
    for name in ("left_out", "found"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        (tmp_path / name / "part.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_child_finds_no_package_that_is_left_out(workers: int) -> None:
    more = {"TESTS_WITHOUT": "left_out"}
    lines = run_child(["-c", LOOK], workers=workers, env=more).splitlines()
    told = [json.loads(line[line.index("[[") :]) for line in lines if "[[" in line]
    assert told == [[[False, False], [False, False], [True, True]]] * workers


@pytest.mark.usefixtures("packages")
def test_a_full_child_finds_all() -> None:
    assert json.loads(run_child(["-c", LOOK], full=True)) == [[True, True]] * 3


def test_the_process_of_the_tests_itself_finds_all() -> None:
    assert not any(one.__name__ == "Rest" for one in sys.meta_path if isinstance(one, type))
    assert set(environment()["TESTS_WITHOUT"].split(",")) >= {"jax", "matplotlib", "sklearn"}
    assert environment(without=())["TESTS_WITHOUT"] == ""
