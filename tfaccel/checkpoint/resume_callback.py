"""Exact resume: a stopped run resumes where it was, and ends as if it had never stopped.

The checkpoint holds all that the rest of the run depends on: every variable that its steps reach
(`run_variables.py`), the state of callbacks, of random generators and of a dataset in Python, and
the position in the epoch. The data are not stored: they are read again up to that position
(`data_replay.py`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import keras
from absl import logging

from tfaccel.checkpoint import checkpoint_manager, data_replay, run_state, run_variables
from tfaccel.checkpoint.background import BackgroundWriter, failure_of_any, settle
from tfaccel.checkpoint.preemption import PreemptionHandler
from tfaccel.checkpoint.recorder import Recorder
from tfaccel.checkpoint.restart_counter import LIMIT, RestartCounter
from tfaccel.checkpoint.run_state import Place, RunState
from tfaccel.checkpoint.sharded_reader import open_checkpoint
from tfaccel.checkpoint.tensor_file import Shard
from tfaccel.checkpoint.topology import Topology, topology_of
from tfaccel.cluster.cluster import cluster_of
from tfaccel.distribute import _private, random_state, stateful_random
from tfaccel.distribute.broadcast import broadcast_text
from tfaccel.distribute.files.file_callbacks import SaveCount
from tfaccel.distribute.files.one_writer import error_of
from tfaccel.errors import CheckpointError
from tfaccel.exit_codes import NO_PROGRESS, PREEMPTED


def resume(
    directory: str | os.PathLike[str],
    every: int | str = 100,
    keep: int = 2,
    asynchronous: bool = True,
) -> keras.callbacks.Callback:
    """A callback that saves a `fit` as it runs, and resumes it when the script is run again.

    Run the same script again after it was killed: weights, optimizers, metrics, history, callbacks,
    random states and the position in the data within the epoch are restored, so that the run ends
    bit-identical to one that was never stopped. On other workers or devices it resumes with the
    same global batches, equal up to the order of floating-point additions.

    SIGTERM, to any of the workers, makes all of them save after the same batch and end with exit
    code 33, which `tfaccel launch` starts again under every engine without counting it. After three
    starts in a row without a new step, the next ends with exit code 93.

    Create it before the dataset if that shuffles without a seed. With several workers, every one
    must create it, with a directory that all of them see.

    Args:
        directory: of this `fit` alone; also on a filesystem of `tf.io.gfile`, such as ``gs://``.
        every: batches between checkpoints, or ``"epoch"``.
        keep: how many checkpoints to keep; if the newest is damaged, the one before it is used.
        asynchronous: whether training continues while a checkpoint is written. For that, host
            memory for a second copy of the state is held throughout the `fit`.

    Raises:
        CheckpointError: in `fit`, when the directory cannot be used, or the checkpoint is of
            another model; when one cannot be written, shortly after the batch.

    Example:
        ```python
        model.fit(x, y, epochs=10, callbacks=[tfaccel.checkpoint.resume("run", every=500)])
        ```
    """
    if every != "epoch" and not (isinstance(every, int) and every > 0):
        raise CheckpointError(
            f"tfaccel: every is {every!r}; expected a number of batches from 1 on, or 'epoch'."
        )
    if keep < 1:
        raise CheckpointError(f"tfaccel: keep is {keep}; expected at least 1 checkpoint.")
    path = os.fspath(directory).rstrip("/")
    if not path:
        raise CheckpointError(
            f"tfaccel: directory is {os.fspath(directory)!r}; expected one of this fit alone."
        )
    return Resume(path, every, keep, asynchronous)


_ended: set[str] = set()  # the directories of fits of this process


class Record(NamedTuple):
    """What this process writes: variables and arrays, and small files by name."""

    shards: list[Shard]
    texts: dict[str, str]


class Resume(keras.callbacks.Callback):  # type: ignore[misc]
    """See `resume`, which creates it."""

    def __init__(self, directory: str, every: int | str, keep: int, asynchronous: bool) -> None:
        super().__init__()
        self._directory, self._every, self._keep = directory, every, keep
        self._asynchronous = asynchronous
        self._fits = self._fitted = False
        self._preemption = PreemptionHandler()
        settle(directory)
        self._newest_path, self._random_at_start = "", b""
        # Until the strategy determines which worker reads for all, each reads: the file is the
        # same. An error is raised in `fit`, on all.
        self._unreadable = error_of(self._read_start)
        self._random_at_start = self._random_at_start or random_state.serialize()
        random_state.restore(self._random_at_start)

    def _read_start(self) -> None:
        """Finds the newest intact checkpoint, and the random state from before the data."""
        self._newest_path = checkpoint_manager.newest(self._directory)
        if self._newest_path:
            self._random_at_start = run_state.random_at_start(self._newest_path)

    def on_train_begin(self, logs: Any = None) -> None:
        """Finds the newest intact checkpoint, and makes `fit` resume from it.

        Raises:
            CheckpointError: where a worker cannot use the directory, on all of them; or the
                checkpoint is of another model.
            SystemExit: after too many starts without a new step.
        """
        fit = _private.running_fit()
        if fit is None:
            raise CheckpointError(
                "tfaccel: tfaccel.checkpoint.resume was called outside of model.fit; expected it "
                "among the callbacks of fit."
            )
        self._fit, self._strategy = fit, self.model.distribute_strategy
        self._count = None if self._every == "epoch" else SaveCount(int(self._every))
        self._batches = self._saved_at = self._batches_before = 0
        self._place = Place(fit.initial_epoch, 0, fit.initial_epoch)
        self._logs: dict[str, float] = {}
        self._pending: RunState | None = None
        self._writer = BackgroundWriter(self._strategy, self._asynchronous)
        self._reserved = False
        if self._fitted:
            self._preemption = PreemptionHandler()
        self._preemption.begin(fit, self._strategy, self._writer.failed)
        self._starts: RestartCounter | None = None
        self._before_validation: Record | None = None
        self._fits = self._fitted = True
        # It runs last, so that it saves the state after all other callbacks.
        self._others = [one for one in fit.callbacks.callbacks if one is not self]
        fit.callbacks.callbacks = [_BeforeAll(self), *self._others, self]
        self._state = Recorder(self.model, self._others, fit.adapter)
        path = self._newest()
        self._count_start()
        if path:
            self._begin_from(path)
        else:
            data_replay.warn_unseeded(fit.adapter)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Records the state at the start of the epoch's pass over the data."""
        self._preemption.begin_phase()
        if self._pending is not None:  # in the middle of the epoch
            self._state.restore_epoch_start(self._pending)
            self._state.restore_callbacks(self._pending)
            return
        self._place = Place(epoch, 0, self._place.first_epoch)
        self._state.begin_epoch()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Saves, if it is time to."""
        self._batches += batch + 1 - self._place.step
        self._place = Place(self._place.epoch, batch + 1, self._place.first_epoch)
        self._logs = {k: v for k, v in (logs or {}).items() if isinstance(v, (int, float))}
        if self._starts is not None:
            self._starts.step(self._batches)
        if not self._reserved:  # now that all variables are created
            self._writer.reserve(self._variables())
            self._reserved = True
            self._warn_of_draws()
        due = self._count is not None and self._count.due(batch)
        self._save_if(due, stops=self._preemption.after_step())

    def _warn_of_draws(self) -> None:
        """Warns, on the chief, of a traced step that draws from what no checkpoint can hold."""
        if not cluster_of(self._strategy).is_chief:
            return
        op = stateful_random.first_in_step(self.model.train_function)
        if op is not None:
            logging.warning(
                "tfaccel: the training step draws random numbers in %s (%s) from a state inside "
                "TensorFlow, which no checkpoint can hold: a resumed run draws other numbers; use "
                "keras.random with a keras.random.SeedGenerator, or a tf.random.Generator.",
                *(op.name, op.type),
            )

    def on_test_begin(self, logs: Any = None) -> None:
        """Records the state at the start of validation, from which stopped validation resumes."""
        if self._fits:
            self._preemption.begin_phase()
            self._before_validation = self._record()

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        """Saves the state from before validation, if the run is to stop."""
        if self._fits:
            stops = self._preemption.after_step()
            self._raise_what_was_heard()
            if stops:
                self._save(self._before_validation)
                self._stop("the state before validation")

    def on_test_end(self, logs: Any = None) -> None:
        """Marks the end of validation."""
        self._before_validation = None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Saves, if it is time to."""
        self._place = Place(epoch + 1, 0, self._place.first_epoch)
        self._logs = {}
        self._state.begin_epoch()
        self._save_if(self._every == "epoch", stops=self._preemption.agreed())

    def on_train_end(self, logs: Any = None) -> None:
        """Saves the end of the run, from which a `fit` of more epochs resumes."""
        self._preemption.ignore()
        if self._pending is not None:  # there was nothing left to do
            self._ready(self._pending)
        elif self._batches != self._saved_at:
            self._save()
        self._writer.close()
        idle = self._batches == self._batches_before and self._directory in _ended
        if idle and cluster_of(self._strategy).is_chief:
            logging.warning(
                "tfaccel: this fit has trained no batch: the run in %s had ended in an earlier fit "
                "of this process; expected more epochs, or a directory of its own for each fit.",
                self._directory,
            )
        _ended.add(self._directory)
        self._fits = False
        if self._starts is not None:
            self._starts.saved(self._batches)
            self._starts.close()

    def _checks(self) -> Any:
        """The strategy's first-step check, if it has one."""
        return getattr(self._strategy, "checks", None)

    # --- saving --------------------------------------------------------------------------------

    def _save_if(self, due: bool, stops: bool) -> None:
        """Saves if it is due, or if the run is to stop; then ends the process."""
        self._raise_what_was_heard()
        if due or stops:
            self._preemption.saves = True
            self._save()
            self._preemption.saves = False
        if stops:
            self._stop("the state at that point")

    def _raise_what_was_heard(self) -> None:
        """Raises the write errors of some workers on all of them, after the same step."""
        if self._preemption.knows_of_failure:
            self._writer.finish()

    def _stop(self, what: str) -> None:
        """Ends the process after a save."""
        self._writer.finish()
        logging.warning(
            "tfaccel: SIGTERM: saved after batch %d of epoch %d, %s; exit code %d, run again to "
            "resume.",
            *(self._place.step, self._place.epoch + 1, what, PREEMPTED),
        )
        self._preemption.ignore()
        raise SystemExit(PREEMPTED)

    def _record(self) -> Record:
        """The complete current state, in the variables' own memory."""
        checks = self._checks()
        verdict = None if checks is None else checks.verdict(self.model)
        state = self._state.state(
            self._place, self._batches, self._logs, self._random_at_start, verdict
        )
        cluster = cluster_of(self._strategy)
        return Record([*self._variables(), *state.shards(cluster)], state.texts(cluster))

    def _variables(self) -> list[Shard]:
        """The part of all variables that this process writes."""
        return run_variables.shards(self.model, self._strategy, self._others)

    def _save(self, record: Record | None = None) -> None:
        """Writes a record; None to record the current state."""
        self._writer.finish()  # before the host holds a third copy of the state
        before, self._saved_at = self._saved_at, self._batches
        shards, texts = record or self._record()
        path = checkpoint_manager.checkpoint_path(self._directory, self._batches)
        then = partial(self._saved, self._batches, before)
        self._writer.start(path, shards, texts, then)
        if not self._asynchronous:
            self._writer.finish()

    def _saved(self, batches: int, before: int) -> None:
        """Called on the chief, in the background, once a checkpoint is in place."""
        # The others have read the one that the run resumed from: they have written after it.
        checkpoint_manager.keep_newest(self._directory, self._keep, batches, before)
        if self._starts is not None:
            self._starts.saved(batches)

    # --- resuming ------------------------------------------------------------------------------

    def _newest(self) -> str:
        """The newest intact checkpoint, as the chief finds it."""

        def find() -> str:
            if self._unreadable is not None:
                raise self._unreadable
            if not cluster_of(self._strategy).is_chief:
                return ""
            return checkpoint_manager.newest(self._directory, self._newest_path)

        return self._from_chief(find)

    def _count_start(self) -> None:
        """Ends the process when the last few starts made no new step."""
        counts: list[RestartCounter] = []

        def begin() -> str:
            counts.append(RestartCounter(self._directory))
            return "stuck" if cluster_of(self._strategy).is_chief and not counts[0].begin() else ""

        stuck = self._from_chief(begin)
        (count,) = counts
        if stuck:
            logging.error(
                "tfaccel: no progress: the last %d attempts ended before completing a step after "
                "batch %d; expected at least one step; see what ended them, and remove %s to start "
                "again; exit code %d.",
                *(LIMIT, count.furthest, count.path, NO_PROGRESS),
            )
            raise SystemExit(NO_PROGRESS)
        self._preemption.before_stop = count.take_back
        self._starts = count if cluster_of(self._strategy).is_chief else None

    def _from_chief(self, work: Callable[[], str]) -> str:
        """The chief's result of what all workers do with the directory; every worker must call.

        Raises:
            CheckpointError: when some worker failed, on all of them.
        """
        results: list[str] = []
        error = error_of(lambda: results.append(work()))
        failure = failure_of_any(self._strategy, error)
        if failure:
            raise CheckpointError(
                f"tfaccel: the checkpoints in {self._directory} cannot be read and written "
                f"({failure}); expected a directory that every worker can use; give resume "
                "another one, or correct its permissions."
            ) from error
        (result,) = results
        several = getattr(self._strategy, "cluster", None) is not None
        return broadcast_text(self._strategy, result) if several else result

    def _begin_from(self, path: str) -> None:
        self._path, self._reader = path, open_checkpoint(path)
        cluster = getattr(self._strategy, "cluster", None)
        topology = topology_of(self._strategy)
        state = self._pending = run_state.read_state(path, self._reader, cluster, topology)
        self._place, self._batches, self._logs = state.place, state.batches, state.logs
        self._saved_at = self._batches_before = self._batches
        if self._count is not None:
            self._count.go_on(state.place.step, self._batches)
        missing = self._restore_variables().missing
        if state.topology != topology:
            self._say_what_changes(state, topology)
        elif state.verdict is not None and (checks := self._checks()) is not None:
            checks.keep_verdict(self.model, state.verdict)
        self._state.restore_callbacks(state)
        epochs = int(self.params.get("epochs") or 0)
        adapter, place = self._fit.adapter, state.place
        ended = place.epoch >= epochs or (state.stopped and not place.step)
        position = f"epoch {place.epoch + 1}, batch {place.step + 1}"
        self._say(f"resuming from {path}: {'the end of the run' if ended else position}")
        in_python = data_replay.reads_in_python(adapter)
        before = place.epoch - place.first_epoch
        repeatable = data_replay.passes_are_alike(adapter) and not self._fit.epochs.steps_per_epoch
        if (before or place.step) and not in_python and not repeatable:
            self._warn_of_reading(before, place.step)
        _private.start_within_epoch(
            self.model,
            self._fit.epochs,
            max(epochs, place.epoch) if state.stopped and not place.step else place.epoch,
            _private.EpochStart(
                step=place.step,
                epochs_before=min(before, 1) if in_python else before,
                whole=data_replay.has_threads(adapter) if in_python else not repeatable,
                warm=bool(missing),
                data_ready=lambda: (
                    self._state.restore_data(state) if before and place.step else None
                ),
                ready=lambda: self._ready(state) if place.step else None,
                logs=state.logs,
            ),
        )

    def _restore_variables(self) -> run_variables.Restored:
        assert self._pending is not None
        saved = self._pending.topology
        restored = run_variables.restore(
            self.model, self._strategy, self._reader, saved, self._others
        )
        self._refuse(restored.unknown, "has no variable of matching shape for")
        return restored

    def _say_what_changes(self, state: RunState, topology: Topology) -> None:
        if state.topology.workers != topology.workers and _reads_per_worker(self._strategy):
            raise CheckpointError(
                f"tfaccel: {self._path} was saved on {state.topology} and resumes on {topology}; "
                "expected as many workers under input='per_worker', where each reads rows of its "
                "own; start as many, or remove the checkpoints to start over."
            )
        self._say(f"saved on {state.topology}, resuming on {topology}")
        if state.topology.workers != topology.workers and run_state.processes_differ(
            self._path, self._reader, state
        ):
            logging.warning(
                "tfaccel: the random states of the %d workers were not the same; all resume "
                "with those of the first one.",
                state.topology.workers,
            )

    def _say(self, text: str) -> None:
        """Prints a line, on the chief."""
        if cluster_of(self._strategy).is_chief:
            print(f"tfaccel: {text}.", file=sys.stderr, flush=True)

    def _warn_of_reading(self, epochs: int, batches: int) -> None:
        """Warns, on the chief, of data that return to their position batch by batch."""
        if cluster_of(self._strategy).is_chief:
            logging.warning(
                "tfaccel: the position in these data cannot be restored: %d epochs and %d batches "
                "are read again and skipped, which takes as long as reading them did; a "
                "keras.utils.PyDataset reads no earlier epochs again.",
                *(epochs, batches),
            )

    def _ready(self, state: RunState) -> None:
        """Restores everything; the next batch is the one after the checkpoint."""
        restored = self._restore_variables()
        self._pending = None
        for names, what in (
            (restored.averaged, "replicas were trained separately and are averaged"),
            (restored.left_out, "state of the strategy is not restored, and is reset"),
        ):
            if names:
                logging.warning(
                    "tfaccel: %s: %s (of %d variables).", what, ", ".join(names[:3]), len(names)
                )
        self._refuse(restored.missing, "contains variables that the model does not have:")
        if state.place.step == 0:
            self.model.reset_metrics()  # as fit does, before validation leaves values in them
        self._state.restore_callbacks(state)
        if state.place.step:
            self.model.stop_training = state.stopped
        else:
            self._state.restore_dataset(state)
        if not (state.place.step and data_replay.reads_in_python(self._fit.adapter)):
            self._state.restore_random(state)

    def _refuse(self, names: list[str], has: str) -> None:
        if names:
            raise CheckpointError(
                f"tfaccel: the checkpoint {self._path} {has} {', '.join(names[:3])} (of "
                f"{len(names)} variables); expected the model that was saved; "
                "give each run a directory of its own."
            )


class _BeforeAll(keras.callbacks.Callback):  # type: ignore[misc]
    """Restores a run that resumes between epochs, before other callbacks begin the next."""

    def __init__(self, resume: Resume) -> None:
        super().__init__()
        self._resume = resume

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Acts in the first epoch, if none of its steps were taken."""
        pending = self._resume._pending
        if pending is not None and not pending.place.step:
            self._resume._ready(pending)


def _reads_per_worker(strategy: Any) -> bool:
    return getattr(strategy, "input", "global") == "per_worker"
