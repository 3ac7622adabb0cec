"""What is built holds the whole house, and its front doors open without TensorFlow."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import tfaccel

ROOT = Path(__file__).resolve().parents[1]
STRATEGIES = {f"tfaccel/strategies/{path.name}" for path in (ROOT / "strategies").glob("*.py")}


def run(*command: str | Path, cwd: Path | None = None, **variables: str) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, **variables},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(kind: str, source: Path, target: Path) -> Path:
    """Builds as pip does, but with the setuptools that is installed: tests need no network."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(target)!r}))"
    run(sys.executable, "-c", code, cwd=source)
    (built,) = target.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return built


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkout = tmp_path_factory.mktemp("checkout")
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, checkout)
    for name in ("tfaccel", "strategies"):
        shutil.copytree(
            ROOT / name,
            checkout / name,
            symlinks=True,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    return build("sdist", checkout, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the unpacked sdist, as a user without a wheel does."""
    source = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        # The filter came with patch releases: some 3.10 and 3.11 lack it, 3.12 and 3.13 request it.
        archive.extractall(
            source, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {})
        )
    (unpacked,) = source.iterdir()
    return build("wheel", unpacked, tmp_path_factory.mktemp("wheel"))


def test_the_link_is_relative():
    assert os.readlink(ROOT / "tfaccel" / "strategies") == "../strategies"


def test_the_sdist_holds_the_strategies(sdist: Path):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= STRATEGIES


def test_the_wheel_holds_every_module_and_py_typed(wheel: Path):
    modules = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "tfaccel").rglob("*.py")
        if "__pycache__" not in path.parts
    }
    assert STRATEGIES
    held = set(zipfile.ZipFile(wheel).namelist())
    assert modules | STRATEGIES | {"tfaccel/py.typed"} <= held
    tops = {name.partition("/")[0] for name in held}
    assert tops == {"tfaccel", f"tfaccel-{tfaccel.__version__}.dist-info"}


def test_an_installed_wheel_imports_its_strategies(wheel: Path, tmp_path: Path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = "import tfaccel.strategies as s; print(s.__file__)"
    shown = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert Path(shown.strip()) == tmp_path / "tfaccel" / "strategies" / "__init__.py"


def test_metadata(wheel: Path):
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = Parser().parsestr(archive.read(name).decode())
    assert metadata["Version"] == tfaccel.__version__
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License"] == "Apache-2.0"
    requires = metadata.get_all("Requires-Dist")
    assert {"keras>=3.8", "numpy", "absl-py", "rich"} == {r for r in requires if ";" not in r}
    assert 'tensorflow-cpu>=2.18; extra == "cpu"' in requires
    assert 'tensorflow[and-cuda]>=2.18; extra == "gpu"' in requires


def test_the_command_is_installed(wheel: Path):
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
    assert "tfaccel = tfaccel.cli:main" in archive.read(name).decode()


@pytest.mark.parametrize(
    "code",
    [
        "import tfaccel",
        "import tfaccel.flags, tfaccel.env, tfaccel.selftest, tfaccel.strategies",
        "import runpy; sys.argv = ['tfaccel', '--help']; "
        "runpy.run_module('tfaccel.cli', run_name='__main__')",
    ],
    ids=["import tfaccel", "import the packages", "tfaccel --help"],
)
def test_tensorflow_is_not_imported(code: str):
    # At exit, since --help ends in SystemExit.
    watch = (
        "import atexit, sys; heavy = {'tensorflow', 'keras'}; "
        "atexit.register(lambda: print('HEAVY', sorted(heavy & set(sys.modules))))"
    )
    shown = run(sys.executable, "-c", f"{watch}; {code}", cwd=ROOT)
    assert shown.splitlines()[-1] == "HEAVY []"
