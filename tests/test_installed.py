"""Builds of TensorFlow that would end the process are refused before they are imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tfaccel
from tfaccel import installed
from tfaccel.errors import StrategyError

TPU = {"tensorflow-tpu": "2.20.0"}


def test_without_tensorflow_one_line_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StrategyError, match=r"not installed; pip install 'tfaccel\[gpu\]'"):
        tfaccel.strategy("one_device")


@pytest.mark.parametrize(
    "found",
    [
        {},
        {"tensorflow-cpu": "2.21.0"},
        {"tensorflow-cpu": "2.21.0", "libtpu": "0.0.52"},
        {**TPU, "libtpu": "0.0.14"},
        {**TPU, "libtpu": "0.0.31"},
        {"tensorflow-tpu": "2.19.1", "libtpu": "0.0.9"},  # a pair that nobody has tried
    ],
)
def test_these_can_be_imported(found: dict[str, str]) -> None:
    installed.check(found)


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (
            {**TPU, "libtpu": "0.0.52"},
            r"2\.20\.0 is installed with libtpu 0\.0\.52; expected",
        ),
        (
            {**TPU, "libtpu": "0.0.32"},
            r"libtpu 0\.0\.32; expected libtpu >=0\.0\.14,<0\.0\.32",
        ),
        ({**TPU, "libtpu": "0.0.13"}, r"with libtpu 0\.0\.13"),
        (TPU, "is installed with no libtpu"),
        (
            {**TPU, "libtpu": "0.0.31", "tensorflow": "2.21.0"},
            r"is installed over tensorflow; expected one build.*uninstall -y tensorflow",
        ),
    ],
)
def test_these_would_end_the_process(found: dict[str, str], says: str) -> None:
    with pytest.raises(StrategyError, match=says) as error:
        installed.check(found)
    assert installed.INSTALL_TPU in str(error.value)


@pytest.mark.parametrize(
    ("found", "have"),
    [({}, "no TensorFlow"), ({"tensorflow-cpu": "2.21.0"}, "tensorflow-cpu 2.21.0")],
)
def test_a_tpu_needs_its_own_build(found: dict[str, str], have: str) -> None:
    with pytest.raises(StrategyError, match=f"a TPU was requested and {have} is installed"):
        installed.check_tpu(found)


@pytest.mark.parametrize(
    ("snippet", "code"),
    [
        ("import tfaccel; tfaccel.strategy('auto')", 1),
        ("from tfaccel import env; env.main([])", 0),
    ],
)
def test_tensorflow_is_not_imported_then(snippet: str, code: int, tmp_path: Path) -> None:
    for name, version in (("tensorflow_tpu", "2.20.0"), ("libtpu", "0.0.52")):
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (tmp_path / "tensorflow.py").write_text("import os; os.abort()")
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", snippet],
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "500"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    assert "tensorflow-tpu is installed over tensorflow" in done.stdout + done.stderr
