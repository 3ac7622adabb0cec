"""What a run that is saved and resumed tells its user: where it resumes, and what differs there."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from absl import logging

from tfaccel.checkpoint.restart_counter import LIMIT, RestartCounter
from tfaccel.checkpoint.run_state import Place
from tfaccel.checkpoint.run_variables import Restored
from tfaccel.checkpoint.topology import Topology
from tfaccel.distribute import stateful_random
from tfaccel.exit_codes import NO_PROGRESS, PREEMPTED


@dataclass(frozen=True)
class Messages:
    """What all workers know alike, told once: by the chief."""

    is_chief: bool

    def resumes(self, path: str, position: str) -> None:
        """The checkpoint, and the position in the run that is next."""
        self._print(f"resuming from {path}: {position}")

    def other_topology(self, saved: Topology, now: Topology) -> None:
        """A run on other workers or devices than before."""
        self._print(f"saved on {saved}, resuming on {now}")

    def draws(self, model: Any) -> None:
        """A traced step that draws from what no checkpoint can hold."""
        op = stateful_random.first_in_step(model.train_function) if self.is_chief else None
        if op is not None:
            logging.warning(
                "tfaccel: the training step draws random numbers in %s (%s) from a state inside "
                "TensorFlow, which no checkpoint can hold: a resumed run draws other numbers; use "
                "keras.random with a keras.random.SeedGenerator, or a tf.random.Generator.",
                *(op.name, op.type),
            )

    def reads_again(self, epochs: int, batches: int) -> None:
        """Data that return to their position batch by batch."""
        if self.is_chief:
            logging.warning(
                "tfaccel: the position in these data cannot be restored: %d epochs and %d batches "
                "are read again and skipped, which takes as long as reading them did; a "
                "keras.utils.PyDataset reads no earlier epochs again.",
                *(epochs, batches),
            )

    def idle(self, directory: str) -> None:
        """A fit that found its run at the end."""
        if self.is_chief:
            logging.warning(
                "tfaccel: this fit has trained no batch: the run in %s had ended in an earlier fit "
                "of this process; expected more epochs, or a directory of its own for each fit.",
                directory,
            )

    def _print(self, text: str) -> None:
        if self.is_chief:
            print(f"tfaccel: {text}.", file=sys.stderr, flush=True)


def restored(result: Restored) -> None:
    """Variables that were restored otherwise than to their own saved values."""
    for names, what in (
        (result.averaged, "replicas were trained separately and are averaged"),
        (result.left_out, "state of the strategy is not restored, and is reset"),
    ):
        if names:
            logging.warning(
                "tfaccel: %s: %s (of %d variables).", what, ", ".join(names[:3]), len(names)
            )


def one_random_state(saved: Topology) -> None:
    """Workers with different random states, which other workers cannot continue."""
    logging.warning(
        "tfaccel: the random states of the %d workers were not the same; all resume with those of "
        "the first one.",
        saved.workers,
    )


def preempted(place: Place, what: str) -> None:
    """The end of a process that was told to stop."""
    logging.warning(
        "tfaccel: SIGTERM: saved after batch %d of epoch %d, %s; exit code %d, run again to "
        "resume.",
        *(place.step, place.epoch + 1, what, PREEMPTED),
    )


def no_progress(count: RestartCounter) -> None:
    """The end of a run whose last starts made no new step."""
    logging.error(
        "tfaccel: no progress: the last %d attempts ended before completing a step after batch "
        "%d; expected at least one step; see what ended them, and remove %s to start again; exit "
        "code %d.",
        *(LIMIT, count.furthest, count.path, NO_PROGRESS),
    )
