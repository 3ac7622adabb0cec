"""A directory of checkpoints: each is complete and has checksums, and the newest few are kept."""

from __future__ import annotations

import re

import tensorflow as tf
from absl import logging

from tfaccel.checkpoint import manifest
from tfaccel.distribute.files.atomic import inside, remove_folder

_NAME = re.compile(r"step-(\d{10})")
_OLD = re.compile(r"\.old\." + _NAME.pattern)
_LEFT = re.compile(r"\.(writing|old)\." + _NAME.pattern)  # by runs that were killed


def checkpoint_path(directory: str, step: int) -> str:
    """The path of the checkpoint after this many steps.

    >>> checkpoint_path("run", 1200)
    'run/step-0000001200'
    """
    return inside(directory.rstrip("/"), f"step-{step:010d}")


def newest(directory: str, whole: str = "") -> str:
    """The newest intact checkpoint; empty where there is none. Logs the damaged ones.

    Args:
        directory: of the checkpoints.
        whole: one that was verified before, and is not read again.
    """
    # One that was being replaced, where directories cannot be exchanged, is better than none.
    replaced = _all(directory, _OLD)
    for path in [*reversed(_all(directory)), *reversed(replaced)]:
        wrong = "" if path == whole else manifest.damage(path)
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
