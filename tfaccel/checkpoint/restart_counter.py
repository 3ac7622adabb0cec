"""Counts restarts without progress, so that a run that keeps failing is not restarted forever.

The count and the furthest batch are a line in a file next to the checkpoints: every engine starts
the same script, and none of them sees batches.
"""

from __future__ import annotations

import os
import re

import tensorflow as tf

from tfaccel.distribute.files.atomic import inside, is_remote

LIMIT = 3
"""After this many starts in a row without a new step, the next one ends at once."""

FILE = "starts"
_LINE = "after batch {:020d}: {:010d} starts\n"  # of fixed length, to be overwritten in place


class RestartCounter:
    """The count of one run.

    On a filesystem of `tf.io.gfile` a step is recorded with the checkpoint that holds it, elsewhere
    immediately.

    Args:
        directory: of the run's checkpoints.

    Attributes:
        furthest: the last batch that a start has reached.
        starts: how many there have been since.
    """

    def __init__(self, directory: str) -> None:
        self.path = inside(directory.rstrip("/"), FILE)
        self._remote = is_remote(directory)
        self._file: int | None = None
        self.furthest, self.starts = self._read()

    def begin(self) -> bool:
        """Counts this start; False after too many without a new step."""
        if self.starts >= LIMIT:
            return False
        self._write(self.furthest, self.starts + 1)
        return True

    def take_back(self) -> None:
        """Does not count this start: it was preempted."""
        self.furthest, self.starts = self._read()
        self._write(self.furthest, max(0, self.starts - 1))

    def step(self, batches: int) -> None:
        """Records a step; cheap enough to call for each.

        Args:
            batches: how many the run has trained on in all.
        """
        if batches > self.furthest and not self._remote:
            self._write(batches, 0)

    def saved(self, batches: int) -> None:
        """Records a new checkpoint, or the end of the run."""
        self._write(max(batches, self.furthest), 0)

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _read(self) -> tuple[int, int]:
        try:
            with tf.io.gfile.GFile(self.path) as file:
                numbers = re.findall(r"\d+", file.read())
        except tf.errors.NotFoundError:
            return 0, 0
        return (int(numbers[0]), int(numbers[1])) if len(numbers) == 2 else (0, 0)

    def _write(self, furthest: int, starts: int) -> None:
        self.furthest, self.starts = furthest, starts
        line = _LINE.format(furthest, starts)
        if self._remote:
            tf.io.gfile.makedirs(os.path.dirname(self.path))
            with tf.io.gfile.GFile(self.path, "w") as file:
                file.write(line)
            return
        if self._file is None:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        os.pwrite(self._file, line.encode(), 0)
