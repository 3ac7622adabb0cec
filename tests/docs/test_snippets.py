"""Every code block of README.md, CONTRIBUTING.md and docs/ is run, or checked as far as it can be.

Python blocks run in order, each page in a separate process (`fences.py` tells what else an info
string may request); commands go through the parsers of the command line, and nothing is started.
"""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

import pytest

from tests.docs import commands
from tests.docs.fences import PAGES, ROOT, Fence, all_fences, fences
from tests.support import run_child
from tfaccel.planner.device_catalogue import catalogue

MOST_NOT_RUN = 4  # blocks of Python that need what no test machine has
_DOTALL = re.DOTALL | re.MULTILINE
LANGUAGES = {"python", "sh", "text", "diff", "toml"}

PYTHON = all_fences("python")
SHELL = [line for fence in all_fences("sh") for line in commands.lines(fence)]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, str]]]:
    """What all processes printed, and by rank what came of each block."""
    out = tmp_path_factory.mktemp("docs")
    printed = run_child(["-m", "tests.docs.run", str(out)], full=True)
    return printed, [
        dict(json.loads(line) for line in path.read_text("utf-8").splitlines())
        for path in sorted(Path(out).glob("rank-*.jsonl"))
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "fence", [f for f in PYTHON if "no_run" not in f.settings], ids=lambda f: f.name
)
def test_a_python_block_runs(ran: tuple[str, list[dict[str, str]]], fence: Fence) -> None:
    printed, ranks = ran
    first = next(f for f in PYTHON if f.session == fence.session and "no_run" not in f.settings)
    for rank in range(int(first.settings.get("workers", 1))):
        assert fence.name in ranks[rank], f"rank {rank} did not come to it\n{printed[-6000:]}"
        assert not ranks[rank][fence.name], f"rank {rank}: {ranks[rank][fence.name]}"


def test_a_block_that_is_not_run_gives_a_reason_and_is_python() -> None:
    left_out = [fence for fence in PYTHON if "no_run" in fence.settings]
    assert len(left_out) <= MOST_NOT_RUN
    for fence in left_out:
        assert len(fence.settings["no_run"]) > 10, fence.name
        compile(fence.text, fence.name, "exec")


def test_examples_of_docstrings_are_python() -> None:
    found = 0
    for path in [*(ROOT / "tfaccel").rglob("*.py"), *(ROOT / "strategies").glob("*.py")]:
        for code in re.findall(r"^ +```python\n(.*?)^ +```$", path.read_text("utf-8"), _DOTALL):
            compile(textwrap.dedent(code), str(path), "exec")
            found += 1
    assert found >= 5


@pytest.mark.parametrize(("place", "text"), SHELL, ids=[place for place, _ in SHELL])
def test_a_command_is_one(place: str, text: str) -> None:
    wrong = commands.wrong(text)
    assert not wrong, f"{place}: {wrong}"


@pytest.mark.parametrize("fence", all_fences("toml"), ids=lambda fence: fence.name)
def test_a_file_of_devices_is_one(fence: Fence, tmp_path: Path) -> None:
    (tmp_path / "devices.toml").write_text(fence.text)
    extended = catalogue(tmp_path / "devices.toml")
    assert len(extended) > len(catalogue())


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_block_names_its_language(page: Path) -> None:
    assert [f.name for f in fences(page) if f.language not in LANGUAGES] == []


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("tfaccel launch --nprocs 2 train.py", "--nprocs"),
        ("tfaccel tpu check examples/digits.py:build_model", "--batch"),
        ("tfaccel lunch", "lunch"),
        ("tfaccel tpu chek", "chek"),
        ("pip install 'tfaccel[gpus]'", "gpus"),
        ("make tests", "tests"),
        ("python examples/digit.py", "examples/digit.py"),
    ],
)
def test_a_command_that_is_none_is_found(command: str, said: str) -> None:
    assert said in commands.wrong(command)
