"""Replaces files and directories atomically: a path is complete at any time."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
from collections.abc import Callable

import tensorflow as tf

_ATTEMPTS = 100  # for workers that put the same directory on a shared disk
_HERE, _RENAME_EXCHANGE = -100, 2  # AT_FDCWD of fcntl.h, and the flag of renameat2(2)


def is_remote(path: str) -> bool:
    """Whether `path` is on a filesystem of `tf.io.gfile`, which all workers share.

    >>> is_remote("gs://bucket/m.keras"), is_remote("run/m.keras")
    (True, False)
    """
    return "://" in path


def inside(folder: str, name: str) -> str:
    """The path of `name` in `folder`, which may be remote."""
    return f"{folder}/{name}"


def beside(path: str, kind: str) -> str:
    """A hidden name next to `path`.

    >>> beside("gs://bucket/run/step-1", "old"), beside("step-1", "old")
    ('gs://bucket/run/.old.step-1', '.old.step-1')
    """
    above, slash, name = path.rpartition("/")
    return f"{above}{slash}.{kind}.{name}"


def write(path: str, rank: int, write_to: Callable[[str], None], parents: bool = False) -> None:
    """Writes a file, several, or a directory; a local one replaces the previous when complete.

    Workers that share a disk may all write the same path: each first writes its own directory.

    Args:
        path: of the file or directory.
        rank: of this worker.
        write_to: writes to the path passed to it: a file, a directory, or several files with that
            prefix.
        parents: whether to create missing parent directories of `path`.
    """
    if is_remote(path):
        write_to(path)
        return
    path = path.rstrip("/")
    folder, base = os.path.split(path)
    if parents and folder:
        os.makedirs(folder, exist_ok=True)
    worker_folder = beside(path, f"rank{rank}")
    shutil.rmtree(worker_folder, ignore_errors=True)  # left by a killed run
    os.mkdir(worker_folder)
    try:
        write_to(os.path.join(worker_folder, base))
        # Weights in several files have an index, which is complete when they are.
        for name in sorted(
            os.listdir(worker_folder), key=lambda name: (name.endswith(".json"), name)
        ):
            written, target = os.path.join(worker_folder, name), os.path.join(folder, name)
            if os.path.isdir(written):
                _put_folder(written, target, beside(worker_folder, "old"))
            else:
                os.replace(written, target)
    finally:
        shutil.rmtree(worker_folder, ignore_errors=True)


def _put_folder(written: str, target: str, old: str) -> None:
    """Renames a local directory, even if another process puts an equal one there."""
    for attempt in range(_ATTEMPTS):
        shutil.rmtree(old, ignore_errors=True)
        if os.path.isfile(target):
            os.remove(target)
        with contextlib.suppress(FileNotFoundError):
            os.rename(target, old)
        try:
            os.rename(written, target)
            break
        except OSError:
            if attempt == _ATTEMPTS - 1:
                raise
    shutil.rmtree(old, ignore_errors=True)


def begin_folder(folder: str) -> None:
    """Creates an empty directory, replacing one left by a killed run."""
    remove_folder(folder)
    tf.io.gfile.makedirs(folder)


def replace_folder(written: str, folder: str) -> None:
    """Moves the directory `written` to `folder`; either is local or remote, and not shared.

    A local one is on the disk first, and where the system can exchange two directories (Linux, but
    not on NFS) there is one at `folder` at any time. Elsewhere the previous one is beside it, under
    the name of `beside(folder, "old")`, until the new one is in place.
    """
    old = beside(folder, "old")
    remove_folder(old)
    if not is_remote(written):
        _sync_folder(written)
    if tf.io.gfile.exists(folder):
        if not is_remote(folder) and _exchange(written, folder):
            _move(written, old)
        else:
            _move(folder, old)
    if tf.io.gfile.exists(written):
        _move(written, folder)
    if not is_remote(folder):
        _sync_folder(os.path.dirname(folder) or ".")
    remove_folder(old)


def _exchange(one: str, other: str) -> bool:
    """Exchanges two local directories at once; False where that is not possible."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)  # glibc 2.28
    if renameat2 is None:
        return False
    return bool(
        renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _RENAME_EXCHANGE) == 0
    )


def _sync_folder(folder: str) -> None:
    """Leaves the names in a local directory on the disk."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # not on every filesystem
            os.fsync(opened)
    finally:
        os.close(opened)


def remove_folder(folder: str) -> None:
    """Removes a directory if it exists."""
    if tf.io.gfile.exists(folder):
        tf.io.gfile.rmtree(folder)


def _move(folder: str, to: str) -> None:
    if not is_remote(folder):
        tf.io.gfile.rename(folder, to)
        return
    # Not every remote filesystem can rename directories.
    tf.io.gfile.makedirs(to)
    for name in tf.io.gfile.listdir(folder):
        tf.io.gfile.rename(inside(folder, name), inside(to, name))
    remove_folder(folder)
