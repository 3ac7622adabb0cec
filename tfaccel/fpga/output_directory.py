"""The directory of an export: new, or reused from an earlier export only."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tfaccel.cluster.cluster import cluster_of
from tfaccel.errors import FpgaError

LOG = "export.log"
_WRITTEN = "export.files"  # the files of the export, so that the next one removes nothing else


def worker_directory(directory: str | Path, strategy: Any) -> Path:
    """The directory, or one next to it for a worker other than the chief.

    All workers of a job export, as all call `fit`: computing with the model needs them all.

    Args:
        directory: the chief's.
        strategy: the model's; one of several processes has a `cluster`.
    """
    home = Path(directory).expanduser().resolve()
    cluster = cluster_of(strategy)
    if cluster.is_chief:
        return home
    return home.with_name(f"{home.name}.worker-{cluster.rank}")


def prepare(directory: str | Path) -> Path:
    """Creates the directory, or empties that of an earlier export.

    Args:
        directory: new, empty, or an earlier export to which nothing was added.

    Returns:
        Its full path; an empty log is in it.

    Raises:
        FpgaError: there is something else in it, or it cannot be created.
    """
    home = Path(directory).expanduser().resolve()
    try:
        if home.exists():
            _refuse_others(home)
            for one in home.iterdir():  # the directory itself may be the current one
                shutil.rmtree(one) if one.is_dir() and not one.is_symlink() else one.unlink()
        home.mkdir(parents=True, exist_ok=True)
        (home / LOG).touch()
    except OSError as error:
        raise FpgaError(
            f"{home} cannot be created ({error.strerror}); expected a directory that can be "
            "written."
        ) from error
    record_files(home)
    return home


def record_files(home: Path) -> None:
    """Records the current files, all written by the export."""
    names = {one.name for one in home.iterdir()} | {_WRITTEN, "model.keras"}
    (home / _WRITTEN).write_text("\n".join(sorted(names)))


def _refuse_others(home: Path) -> None:
    if not home.is_dir():
        raise FpgaError(f"{home} is a file; expected a new or empty directory.")
    written = home / _WRITTEN
    known = set(written.read_text().split("\n")) if written.is_file() else set()
    others = sorted({one.name for one in home.iterdir()} - known)
    if others:
        raise FpgaError(
            f"{home} holds something else ({others[0]}); expected a new or empty directory, or an "
            "earlier export; use another directory, or move it."
        )
