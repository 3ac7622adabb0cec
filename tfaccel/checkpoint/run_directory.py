"""The directory of a run's checkpoints, in which all workers see what the chief sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tfaccel.checkpoint import checkpoint_manager, run_state
from tfaccel.checkpoint.background import failure_of_any, settle
from tfaccel.checkpoint.restart_counter import RestartCounter
from tfaccel.cluster.cluster import cluster_of
from tfaccel.distribute import random_state
from tfaccel.distribute.broadcast import broadcast_text
from tfaccel.distribute.files.one_writer import error_of
from tfaccel.errors import CheckpointError

_ended: set[str] = set()  # the directories of fits of this process


class RunDirectory:
    """A directory that is read before the data are created, and agreed upon in `fit`.

    Args:
        path: of the directory.

    Attributes:
        path: of the directory.
        random_at_start: the random state from before the run's data; restored here.
    """

    def __init__(self, path: str) -> None:
        self.path, self.random_at_start, self._newest = path, b"", ""
        settle(path)
        # Until the strategy determines which worker reads for all, each reads: the file is the
        # same. An error is raised in `fit`, on all.
        self._unreadable = error_of(self._read)
        self.random_at_start = self.random_at_start or random_state.serialize()
        random_state.restore(self.random_at_start)

    @property
    def has_ended(self) -> bool:
        """Whether an earlier `fit` of this process ended the run."""
        return self.path in _ended

    def end(self) -> None:
        """Marks the end of the run."""
        _ended.add(self.path)

    def newest(self, strategy: Any) -> str:
        """The newest intact checkpoint, as the chief finds it; every worker must call.

        Raises:
            CheckpointError: when some worker failed, on all of them.
        """

        def find() -> str:
            if self._unreadable is not None:
                raise self._unreadable
            if not cluster_of(strategy).is_chief:
                return ""
            return checkpoint_manager.newest(self.path, self._newest)

        return self._from_chief(strategy, find)

    def count_start(self, strategy: Any) -> tuple[RestartCounter, bool]:
        """Counts this start; every worker must call.

        Returns:
            The counter, and whether the last few starts made a new step.

        Raises:
            CheckpointError: when some worker failed, on all of them.
        """
        counts: list[RestartCounter] = []

        def begin() -> str:
            counts.append(RestartCounter(self.path))
            return "stuck" if cluster_of(strategy).is_chief and not counts[0].begin() else ""

        stuck = self._from_chief(strategy, begin)
        return counts[0], not stuck

    def _read(self) -> None:
        self._newest = checkpoint_manager.newest(self.path)
        if self._newest:
            self.random_at_start = run_state.random_at_start(self._newest)

    def _from_chief(self, strategy: Any, work: Callable[[], str]) -> str:
        """The chief's result of what all workers do with the directory."""
        results: list[str] = []
        error = error_of(lambda: results.append(work()))
        failure = failure_of_any(strategy, error)
        if failure:
            raise CheckpointError(
                f"tfaccel: the checkpoints in {self.path} cannot be read and written "
                f"({failure}); expected a directory that every worker can use; give resume "
                "another one, or correct its permissions."
            ) from error
        (result,) = results
        several = getattr(strategy, "cluster", None) is not None
        return broadcast_text(strategy, result) if several else result
