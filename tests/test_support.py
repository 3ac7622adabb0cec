"""What a child process of the tests finds, and what it is kept from."""

from __future__ import annotations

import json
import sys

import pytest

from tests import support
from tests.conftest import LONGEST, TESTS
from tests.fork_server import ForkServer
from tests.support import environment, run_child, run_forked

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


ENDS = """
import os, signal, sys
assert {"tensorflow", "keras"} <= set(sys.modules)
assert os.environ["TOLD"] == sys.argv[1] and os.getpgid(0) == os.getpid()
print("of", os.getppid(), flush=True)
print("to the other stream", file=sys.stderr)
if sys.argv[1] == "dies":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(sys.argv[1]))
"""


@pytest.mark.slow
def test_forked_children_end_as_others_do(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ends.py").write_text(ENDS)
    server = ForkServer(environment(), tmp_path)
    monkeypatch.setattr(support, "_FORK_SERVERS", [server])
    said = []
    for told, code in (("0", 0), ("dies", -9), ("3", 3)):
        said.append(run_forked(["ends", told], env={"TOLD": told}, codes=(code,)))
    assert len({text.splitlines()[0] for text in said}) == 1, "of one process"
    assert all("to the other stream" in text for text in said)
    with pytest.raises(AssertionError, match=r"(?s)exited with 3.*to the other stream"):
        run_forked(["ends", "3"], env={"TOLD": "3"})
    server.close()


def test_files_that_come_first_are_there() -> None:
    assert [name for name in LONGEST if not (TESTS / name).is_file()] == []
