from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

from tfaccel.launch.script_arguments import (
    add_command,
    python_command,
    script_of,
    variable,
)


def parsed(*words: str) -> list[str]:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--nproc")
    add_command(parser)
    options = parser.parse_args(words)
    return python_command(script_of(parser, options), module=options.module)


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["--nproc", "2", "train.py"], [sys.executable, "train.py"]),
        (["train.py", "--nproc", "2", "-m"], [sys.executable, "train.py", "--nproc", "2", "-m"]),
        (["train.py", "--", "-x", "--", "y"], [sys.executable, "train.py", "-x", "--", "y"]),
        (["-m", "pkg.train", "--", "-x"], [sys.executable, "-m", "pkg.train", "-x"]),
        (["env", "--", "python"], ["env", "--", "python"]),
        (["--", "train.py", "--", "-x"], [sys.executable, "train.py", "--", "-x"]),
        (["--nproc=2", "-m", "pkg.train", "-x"], [sys.executable, "-m", "pkg.train", "-x"]),
        (["-m", "--", "pkg.train"], [sys.executable, "-m", "pkg.train"]),
        (["nice", "python", "train.py"], ["nice", "python", "train.py"]),
    ],
)
def test_the_command_ends_the_options(
    words: list[str], command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.py").touch()
    assert parsed(*words) == command


@pytest.mark.parametrize(
    ("words", "says"), [([], "nothing to run"), (["--"], "nothing to run"), (["no.py"], "no file")]
)
def test_a_missing_command_is_an_error(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parsed(*words)
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "pair"), [("K=V", ("K", "V")), ("K=", ("K", "")), ("K=a=b", ("K", "a=b"))]
)
def test_variable(text: str, pair: tuple[str, str]) -> None:
    assert variable(text) == pair


@pytest.mark.parametrize("text", ["K", "=V", ""])
def test_a_variable_needs_a_name_and_a_value(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not K=V"):
        variable(text)
