"""Checkpoints that are damaged are told from intact ones, of this version and of older ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tfaccel.checkpoint import checkpoint_manager, manifest

CONTENT = {"variables.data": bytes(range(256)) * 20, "run.json": b"{}"}


def write(path: Path) -> None:
    path.mkdir()
    for name, content in CONTENT.items():
        (path / name).write_bytes(content)
    manifest.seal(str(path), {})


def write_old(path: Path) -> None:
    """As versions before this one did."""
    write(path)
    files = {n: [len(c), hashlib.sha256(c).hexdigest()] for n, c in CONTENT.items()}
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps({"files": files, "sha256": digest}))


def flip(path: Path) -> None:
    content = bytearray((path / "variables.data").read_bytes())
    content[1234] ^= 1
    (path / "variables.data").write_bytes(content)


def cut(path: Path) -> None:
    (path / "variables.data").write_bytes(CONTENT["variables.data"][:-1])


def lose(path: Path) -> None:
    (path / "run.json").unlink()


def edit(path: Path) -> None:
    file = path / "manifest.json"
    file.write_text(file.read_text().replace("5120", "5121"))


@pytest.mark.parametrize("make", [write, write_old])
@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda path: None, ""),
        (flip, "variables.data does not match its checksum"),
        (cut, "variables.data does not match its checksum"),
        (lose, "NotFoundError"),
        (edit, "manifest.json is damaged"),
    ],
)
def test_damage_is_found(
    make: Callable[[Path], None], harm: Callable[[Path], None], says: str, tmp_path: Path
) -> None:
    path = tmp_path / "step-0000000007"
    make(path)
    harm(path)
    found = manifest.damage(str(path))
    assert found.startswith(says) if says else not found
    assert checkpoint_manager.newest(str(tmp_path)) == ("" if says else str(path))
