"""A profile of some steps of `fit`, for TensorBoard: the same steps on every worker.

Steps are counted as batches are taken, from 1, over the epochs and `fit`s of a process. Workers
take the same batches, so the same numbers are the same steps. A step is over when the next batch
is requested, by any caller.

Each worker's profile is one file of one directory, as TensorBoard shows the hosts of a run::

    DIRECTORY/plugins/profile/steps-10-20/rank-0.xplane.pb
"""

from __future__ import annotations

import atexit
import glob
import os
import sys
import tempfile
from dataclasses import dataclass
from typing import Any

import tensorflow as tf


@dataclass(frozen=True)
class ProfileRange:
    """Which steps of a process are profiled, and where the profile goes.

    Attributes:
        first: the first one, counted from 1.
        last: the last one.
        folder: TensorBoard's; all workers may share it.
        rank: this worker's.
    """

    first: int
    last: int
    folder: str
    rank: int = 0

    @property
    def run(self) -> str:
        """The directory of the files of all workers."""
        run = f"steps-{self.first}-{self.last}"
        return os.path.join(self.folder, "plugins", "profile", run)

    @property
    def file(self) -> str:
        """The file of this worker."""
        return os.path.join(self.run, f"rank-{self.rank}.xplane.pb")


class Profiler:
    """Starts and stops TensorFlow's profiler around a range of steps; one per process."""

    def __init__(self) -> None:
        self._scheduled: ProfileRange | None = None
        self._range: ProfileRange | None = None  # until it is carried out
        self._step = 0
        self._taken = 1  # of which it was the last
        self._written: tempfile.TemporaryDirectory[str] | None = None
        self._mark: Any = None

    def schedule(self, steps: ProfileRange) -> None:
        """Sets which steps are profiled; setting the same again has no effect."""
        if steps == self._scheduled:
            return
        self._end()
        self._range = self._scheduled = steps
        self._step = 0
        atexit.unregister(self._at_exit)
        atexit.register(self._at_exit)

    def step_begins(self, number: int = 1) -> None:
        """A batch of `fit` has arrived, or a call begins that takes several."""
        begin = self._step + 1
        self._step += number
        self._taken = number
        steps = self._range
        if steps is None or self._step < steps.first or steps.last < begin:
            return
        if self._written is None:
            tf.test.experimental.sync_devices()
            self._written = tempfile.TemporaryDirectory(prefix="tfaccel-profile-")
            tf.profiler.experimental.start(self._written.name)
        self._mark = tf.profiler.experimental.Trace("train", step_num=begin, _r=1)
        self._mark.__enter__()

    def step_was_none(self) -> None:
        """Keras has only inspected the batch, and takes it again; or there was none."""
        self._leave_step()
        self._step -= self._taken

    def step_ends(self) -> None:
        """The next batch is requested, or there is none."""
        self._leave_step()
        if self._range is not None and self._step >= self._range.last:
            self._end()

    def _leave_step(self) -> None:
        if self._mark is not None:
            self._mark.__exit__(None, None, None)
            self._mark = None

    def _end(self) -> None:
        """Ends a profile that has begun, and writes it."""
        if self._written is None or self._range is None:
            return
        self._leave_step()
        tf.test.experimental.sync_devices()
        tf.profiler.experimental.stop()
        (written,) = glob.glob(f"{self._written.name}/plugins/profile/*/*.xplane.pb")
        tf.io.gfile.makedirs(self._range.run)
        tf.io.gfile.copy(written, self._range.file, overwrite=True)
        self._written.cleanup()
        self._written = None
        done = min(self._step, self._range.last)
        self._say(f"the profile of steps {self._range.first} to {done} is in {self._range.run}")
        self._range = None

    def _at_exit(self) -> None:
        if self._range is not None and self._step < self._range.first:
            self._say(
                f"no profile was written: the run has ended after step {self._step}, before step "
                f"{self._range.first}"
            )
        self._end()

    def _say(self, text: str) -> None:
        if self._range is not None and self._range.rank == 0:
            print(f"tfaccel: {text}.", file=sys.stderr, flush=True)


profiler = Profiler()
"""Of this process."""
