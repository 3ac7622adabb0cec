"""The bytes of a file are those of its pieces, however they lie in memory and whatever the disk."""

from __future__ import annotations

import errno
import fcntl
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfaccel.checkpoint import direct_write
from tfaccel.checkpoint.direct_write import aligned_memory


def random(size: int, aligned: bool = False) -> np.ndarray:
    made = aligned_memory(size) if aligned else np.empty(size, np.uint8)
    made[:] = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    return made


CONTENTS = {
    "nothing": [],
    "one small": [random(5)],
    "one large, aligned": [random((9 << 20) + 17, aligned=True)],
    "small before large": [random(5), random(9 << 20, aligned=True)],
    "many": [random(n) for n in (0, 1, 4095, 4096, 5 << 20, 77)],
    "whole blocks": [random(8 << 20, aligned=True)],
}


@pytest.mark.parametrize("pieces", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("disk", ["direct", "cannot open", "cannot write", "short writes"])
def test_a_file_has_the_bytes_of_its_pieces(
    disk: str, pieces: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_open, plain_write = os.open, os.write

    def refuses_open(path: str, flags: int, *more: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "as some filesystems")
        return plain_open(path, flags, *more)

    def refuses_write(file: int, block: Any) -> int:
        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "as others")
        return plain_write(file, block)

    if disk == "cannot open":
        monkeypatch.setattr(os, "open", refuses_open)
    if disk == "cannot write":
        monkeypatch.setattr(os, "write", refuses_write)
    if disk == "short writes":
        monkeypatch.setattr(os, "write", lambda file, block: plain_write(file, block[:1_000_001]))
    path = tmp_path / "file"
    path.write_bytes(b"what was there before" * 1000)
    size, crc = direct_write.write(str(path), pieces)
    content = b"".join(piece.tobytes() for piece in pieces)
    assert path.read_bytes() == content
    assert (size, crc) == (len(content), zlib.crc32(content))


def test_other_errors_are_raised() -> None:
    with pytest.raises(FileNotFoundError):
        direct_write.write("/proc/nothing/file", [random(5)])
    with pytest.raises(OSError, match="No space left"):
        direct_write.write("/dev/full", [random(5)])
