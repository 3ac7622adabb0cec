"""Pages show what a dry run prints."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest

from tests.docs.fences import ROOT, Fence, fences
from tfaccel.launch.main import main

PAGES = sorted((ROOT / "docs" / "many_machines").glob("*.md"))
LAUNCHES = [page for page in PAGES if "tfaccel launch" in page.read_text()]
SHOWN = [
    fence
    for page in PAGES
    for fence in fences(page)
    if fence.language == "sh" and fence.printed is not None
]


def printed(fence: Fence, capsys: pytest.CaptureFixture[str]) -> str:
    """What the last command of a block prints, with names in place of this machine's."""
    words = shlex.split(fence.text.replace("\\\n", "").splitlines()[-1])
    assert words[:2] == ["tfaccel", "launch"]
    assert main(words[2:]) == 0
    out = capsys.readouterr().out
    return out.replace(sys.executable, "python").replace(os.getcwd(), "/shared/me")


def test_every_engine_has_a_page_that_shows_one() -> None:
    assert {Path(fence.page).stem for fence in SHOWN} == {
        *("kubernetes", "ray", "skypilot", "slurm", "tpu_vm")
    }


@pytest.mark.parametrize("fence", SHOWN, ids=lambda fence: fence.page)
def test_a_page_shows_what_is_printed(
    fence: Fence,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in ("SLURM_JOB_ID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(variable, raising=False)
    Path("train.py").touch()
    assert printed(fence, capsys) == fence.printed


@pytest.mark.parametrize("page", LAUNCHES, ids=lambda page: page.name)
def test_every_dry_run_of_a_page_runs(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also those whose output is not shown; and those that would start something, without that."""
    monkeypatch.chdir(tmp_path)
    Path("train.py").touch()
    for fence in fences(page):
        if fence.language != "sh":
            continue
        for line in fence.text.replace("\\\n", "").splitlines():
            words = shlex.split(line)
            if "launch" in words and words[0] in ("tfaccel", "salloc", "ray"):
                assert main(["--dry-run", *words[words.index("launch") + 1 :]]) == 0, line
    assert capsys.readouterr().out
