from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Sequence

import pytest

import tfaccel
from tfaccel import cli
from tfaccel.errors import LaunchError


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"tfaccel {tfaccel.__version__}\n"


@pytest.mark.parametrize("argv", [["--help"], []])
def test_help_lists_every_command(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(f"  {name}" in text and one.help in text for name, one in cli.COMMANDS.items())


def test_an_unknown_command_names_the_known(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["lunch"])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert [name for name in ("lunch", *cli.COMMANDS) if name not in said] == []


def test_a_command_gets_the_words_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[Sequence[str]] = []
    module = types.ModuleType("tests_command")
    module.main = lambda argv: got.append(argv) or 5  # type: ignore[attr-defined,func-returns-value]
    monkeypatch.setitem(sys.modules, "tests_command", module)
    monkeypatch.setitem(cli.COMMANDS, "try", cli.Command("tests_command:main", "try"))
    assert cli.main(["try", "--help", "--version"]) == 5
    assert got == [["--help", "--version"]]


def test_our_own_errors_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: Sequence[str]) -> int:
        raise LaunchError("no port is free")

    module = types.ModuleType("tests_command")
    module.main = fails  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tests_command", module)
    monkeypatch.setitem(cli.COMMANDS, "try", cli.Command("tests_command:main", "try"))
    assert cli.main(["try"]) == 2
    assert capsys.readouterr().err == "tfaccel try: error: no port is free\n"


def test_the_launcher_needs_no_tensorflow() -> None:
    check = (
        "import sys, tfaccel.cli, tfaccel.launch.local\n"
        "try: tfaccel.cli.main(['launch', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", check], stdout=subprocess.DEVNULL).returncode == 0
