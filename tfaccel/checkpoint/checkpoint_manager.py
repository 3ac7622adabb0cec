"""A directory of checkpoints: each is complete and has checksums, and the newest few are kept."""

from __future__ import annotations

import hashlib
import json
import re
import zlib

import tensorflow as tf
from absl import logging

from tfaccel.distribute.files.atomic import inside, remove_folder

_MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{10})")
_LEFT = re.compile(r"\.(writing|old)\." + _NAME.pattern)  # by runs that were killed
_BLOCK = 1 << 20  # bytes; several are held at once


def checkpoint_path(directory: str, step: int) -> str:
    """The path of the checkpoint after this many steps.

    >>> checkpoint_path("run", 1200)
    'run/step-0000001200'
    """
    return inside(directory.rstrip("/"), f"step-{step:010d}")


def seal(path: str) -> None:
    """Writes the sizes and checksums of all files of a checkpoint into it, as its last file."""
    names = sorted(name.rstrip("/") for name in tf.io.gfile.listdir(path))
    files = {name: _checksum(inside(path, name)) for name in names}
    text = json.dumps(files, sort_keys=True)
    with tf.io.gfile.GFile(inside(path, _MANIFEST), "w") as file:
        file.write(json.dumps({"files": files, "sha256": _digest(text.encode())}))


def damage(path: str) -> str:
    """What is wrong with a checkpoint; empty where it is intact."""
    try:
        with tf.io.gfile.GFile(inside(path, _MANIFEST)) as file:
            manifest = json.load(file)
        files = manifest["files"]
        if manifest["sha256"] != _digest(json.dumps(files, sort_keys=True).encode()):
            return f"{_MANIFEST} is damaged"
        for name, expected in files.items():
            if _checksum(inside(path, name), old=":" not in expected[1]) != expected:
                return f"{name} does not match its checksum"
    except (OSError, ValueError, KeyError, TypeError, tf.errors.OpError) as error:
        return f"{type(error).__name__}: {getattr(error, 'message', error)}"
    return ""


def newest(directory: str, whole: str = "") -> str:
    """The newest intact checkpoint; empty where there is none. Logs the damaged ones.

    Args:
        directory: of the checkpoints.
        whole: one that was verified before, and is not read again.
    """
    for path in reversed(_all(directory)):
        wrong = "" if path == whole else damage(path)
        if not wrong:
            return path
        logging.warning("tfaccel: skipping checkpoint %s: %s", path, wrong)
    return ""


def keep_newest(directory: str, number: int, saved: int, before: int) -> None:
    """Removes all but the newest few, what was passed over as damaged, and partial ones.

    Args:
        directory: of the checkpoints.
        number: how many to keep.
        saved: the step of the one that was just written.
        before: the step of the intact one before it, 0 for none: a run resumed from it, or wrote
            it. Any other that is newer is damaged, and does not count among those to keep.
    """
    everything = _all(directory)
    last, new = checkpoint_path(directory, before), checkpoint_path(directory, saved)
    passed_over = [path for path in everything if path > last and path != new]
    intact = [path for path in everything if path not in passed_over]
    for path in [*_all(directory, _LEFT), *passed_over, *intact[:-number]]:
        remove_folder(path)


def _all(directory: str, names: re.Pattern[str] = _NAME) -> list[str]:
    """The checkpoints, oldest first."""
    if not tf.io.gfile.exists(directory):
        return []
    entries = sorted(name.rstrip("/") for name in tf.io.gfile.listdir(directory))
    return [inside(directory.rstrip("/"), name) for name in entries if names.fullmatch(name)]


def _checksum(path: str, old: bool = False) -> list[int | str]:
    """Size and CRC-32 of a file.

    Against damage by accident; SHA-256 takes twice as long.

    Args:
        path: of the file.
        old: SHA-256 nevertheless, as older checkpoints have it.
    """
    digest, crc, size = hashlib.sha256(), 0, 0
    with tf.io.gfile.GFile(path, "rb") as file:
        while block := file.read(_BLOCK):
            size += len(block)
            if old:
                digest.update(block)
            else:
                crc = zlib.crc32(block, crc)
    return [size, digest.hexdigest() if old else f"crc32:{crc:08x}"]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
