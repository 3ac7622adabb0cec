"""Exact resume: a stopped run resumes where it was, and ends as if it had never stopped.

The checkpoint holds all that the rest of the run depends on: every variable that its steps reach
(`run_variables.py`), the state of callbacks, of random generators and of a dataset in Python, and
the position in the epoch. The data are not stored: they are read again up to that position
(`data_replay.py`).
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any, NamedTuple

import keras

from tfaccel.checkpoint import (
    checkpoint_manager,
    data_replay,
    resume_messages,
    run_state,
    run_variables,
)
from tfaccel.checkpoint.background import BackgroundWriter
from tfaccel.checkpoint.preemption import PreemptionHandler
from tfaccel.checkpoint.recorder import Recorder
from tfaccel.checkpoint.restart_counter import RestartCounter
from tfaccel.checkpoint.resume_messages import Messages
from tfaccel.checkpoint.run_directory import RunDirectory
from tfaccel.checkpoint.run_state import Place, RunState
from tfaccel.checkpoint.sharded_reader import open_checkpoint
from tfaccel.checkpoint.tensor_file import Shard
from tfaccel.checkpoint.topology import Topology, topology_of
from tfaccel.cluster.cluster import cluster_of
from tfaccel.distribute import _private
from tfaccel.distribute.files.file_callbacks import SaveCount
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


class Record(NamedTuple):
    """What this process writes: variables and arrays, and small files by name."""

    shards: list[Shard]
    texts: dict[str, str]


class Resume(keras.callbacks.Callback):  # type: ignore[misc]
    """See `resume`, which creates it."""

    def __init__(self, directory: str, every: int | str, keep: int, asynchronous: bool) -> None:
        super().__init__()
        self._every, self._keep, self._asynchronous = every, keep, asynchronous
        self._fits = self._fitted = False
        self._preemption = PreemptionHandler()
        self._directory = RunDirectory(directory)

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
        self._messages = Messages(cluster_of(self._strategy).is_chief)
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
        path = self._directory.newest(self._strategy)
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
            self._messages.draws(self.model)
        due = self._count is not None and self._count.due(batch)
        self._save_if(due, stops=self._preemption.after_step())

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
        if self._batches == self._batches_before and self._directory.has_ended:
            self._messages.idle(self._directory.path)
        self._directory.end()
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
        resume_messages.preempted(self._place, what)
        self._preemption.ignore()
        raise SystemExit(PREEMPTED)

    def _record(self) -> Record:
        """The complete current state, in the variables' own memory."""
        checks = self._checks()
        verdict = None if checks is None else checks.verdict(self.model)
        random_at_start = self._directory.random_at_start
        state = self._state.state(self._place, self._batches, self._logs, random_at_start, verdict)
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
        path = checkpoint_manager.checkpoint_path(self._directory.path, self._batches)
        then = partial(self._saved, self._batches, before)
        self._writer.start(path, shards, texts, then)
        if not self._asynchronous:
            self._writer.finish()

    def _saved(self, batches: int, before: int) -> None:
        """Called on the chief, in the background, once a checkpoint is in place."""
        # The others have read the one that the run resumed from: they have written after it.
        checkpoint_manager.keep_newest(self._directory.path, self._keep, batches, before)
        if self._starts is not None:
            self._starts.saved(batches)

    # --- resuming ------------------------------------------------------------------------------

    def _count_start(self) -> None:
        """Ends the process when the last few starts made no new step."""
        count, progresses = self._directory.count_start(self._strategy)
        if not progresses:
            resume_messages.no_progress(count)
            raise SystemExit(NO_PROGRESS)
        self._preemption.before_stop = count.take_back
        self._starts = count if cluster_of(self._strategy).is_chief else None

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
            self._check_topology(state, topology)
        elif state.verdict is not None and (checks := self._checks()) is not None:
            checks.keep_verdict(self.model, state.verdict)
        self._state.restore_callbacks(state)
        epochs = int(self.params.get("epochs") or 0)
        adapter, place = self._fit.adapter, state.place
        ended = place.epoch >= epochs or (state.stopped and not place.step)
        position = f"epoch {place.epoch + 1}, batch {place.step + 1}"
        self._messages.resumes(path, "the end of the run" if ended else position)
        in_python = data_replay.reads_in_python(adapter)
        before = place.epoch - place.first_epoch
        repeatable = data_replay.passes_are_alike(adapter) and not self._fit.epochs.steps_per_epoch
        if (before or place.step) and not in_python and not repeatable:
            self._messages.reads_again(before, place.step)
        _private.start_within_epoch(
            self.model,
            self._fit.epochs,
            max(epochs, place.epoch) if state.stopped and not place.step else place.epoch,
            _private.EpochStart(
                step=place.step,
                epochs_before=min(before, 1) if in_python else before,
                whole=data_replay.has_threads(adapter) if in_python else not repeatable,
                warm=bool(missing) or _private.compiles_in_step(self.model),
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

    def _check_topology(self, state: RunState, topology: Topology) -> None:
        """Says what a run on other workers or devices changes, or refuses it."""
        differs = state.topology.workers != topology.workers
        if differs and getattr(self._strategy, "input", "global") == "per_worker":
            raise CheckpointError(
                f"tfaccel: {self._path} was saved on {state.topology} and resumes on {topology}; "
                "expected as many workers under input='per_worker', where each reads rows of its "
                "own; start as many, or remove the checkpoints to start over."
            )
        self._messages.other_topology(state.topology, topology)
        if differs and run_state.processes_differ(self._path, self._reader, state):
            resume_messages.one_random_state(state.topology)

    def _ready(self, state: RunState) -> None:
        """Restores everything; the next batch is the one after the checkpoint."""
        restored = self._restore_variables()
        self._pending = None
        resume_messages.restored(restored)
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
