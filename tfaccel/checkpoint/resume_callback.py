"""Exact resume: a run that was stopped goes on where it was, and ends as if it had not been.

What is kept is all that the rest of the run depends on: every variable that its steps reach
(`run_variables.py`), the state of callbacks, of random generators and of a dataset in Python, and
the place in the epoch. The data are not kept: they are read again up to that place
(`data_replay.py`).
"""

from __future__ import annotations

import os
from typing import Any

import keras
from absl import logging

from tfaccel.checkpoint import data_replay, run_state, run_variables, store
from tfaccel.checkpoint.folder import Reader, open_folder, write
from tfaccel.checkpoint.recorder import Recorder
from tfaccel.checkpoint.run_state import Place, RunState
from tfaccel.checkpoint.stop_notice import StopNotice
from tfaccel.distribute import _private, random_state
from tfaccel.distribute.broadcast import broadcast_text
from tfaccel.distribute.check import Checks
from tfaccel.distribute.files.file_callbacks import SaveCount
from tfaccel.errors import CheckpointError
from tfaccel.exit_codes import PREEMPTED


def resume(
    directory: str | os.PathLike[str], every: int | str = 100, keep: int = 2
) -> keras.callbacks.Callback:
    """A callback that saves a `fit` as it goes, and lets it go on from there when it is run again.

    Run the same script again after it was killed: weights, optimizers, metrics, history, callbacks,
    random states and the place in the data within the epoch are what they were, so that the run
    ends with the same bits as one that was never stopped.

    SIGTERM, to any of the workers, makes all of them save after the same batch and end with exit
    code 33, which `tfaccel launch` starts again under every engine without counting it.

    Make it before the dataset where that shuffles without a seed. Under several workers every one
    of them must make it, with a directory that all of them see.

    Args:
        directory: of this `fit` alone; also on a filesystem of `tf.io.gfile`, such as ``gs://``.
        every: how many batches from one checkpoint to the next, or ``"epoch"``.
        keep: how many checkpoints are kept; the last but one is used when the last is damaged.

    Raises:
        CheckpointError: in `fit`, when the checkpoint is of another model or another number of
            processes, or cannot be written.

    Example:
        ```python
        model.fit(x, y, epochs=10, callbacks=[tfaccel.checkpoint.resume("run", every=500)])
        ```
    """
    if every != "epoch" and not (isinstance(every, int) and every > 0):
        raise CheckpointError(
            f"tfaccel: every is {every!r}, expected a number of batches from 1 on, or 'epoch'."
        )
    if keep < 1:
        raise CheckpointError(f"tfaccel: keep is {keep}, expected at least 1 checkpoint.")
    return Resume(os.fspath(directory).rstrip("/"), every, keep)


class Resume(keras.callbacks.Callback):  # type: ignore[misc]
    """See `resume`, which makes it."""

    def __init__(self, directory: str, every: int | str, keep: int) -> None:
        super().__init__()
        self._directory, self._every, self._keep = directory, every, keep
        # Before the strategy says who reads for all, each reads: the file is the same.
        found = store.newest(directory)
        self._random_at_start = (
            run_state.random_at_start(found) if found else random_state.serialize()
        )
        random_state.restore(self._random_at_start)

    def on_train_begin(self, logs: Any = None) -> None:
        """Finds the newest checkpoint that is whole, and makes `fit` go on from it."""
        fit = _private.running_fit()
        if fit is None:
            raise CheckpointError(
                "tfaccel: tfaccel.checkpoint.resume was called outside of model.fit, expected it "
                "among the callbacks of fit."
            )
        self._fit, self._strategy = fit, self.model.distribute_strategy
        self._count = None if self._every == "epoch" else SaveCount(int(self._every))
        self._batches = self._saved_at = 0
        self._place = Place(fit.initial_epoch, 0, fit.initial_epoch)
        self._logs: dict[str, float] = {}
        self._pending: RunState | None = None
        self._notice = StopNotice(self._strategy)
        # The last one, so that what it saves is what all the others have made of a batch.
        others = [one for one in fit.callbacks.callbacks if one is not self]
        fit.callbacks.callbacks = [_BeforeAll(self), *others, self]
        self._state = Recorder(self.model, others, fit.adapter)
        path = self._newest()
        if path:
            self._begin_from(path)
        else:
            data_replay.warn_unseeded(fit.adapter)
        self._notice.listen()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Notes the state that the epoch's pass over the data begins with."""
        if self._pending is not None:  # in the middle of the epoch
            self._state.begin_again(self._pending)
            self._state.put_callbacks(self._pending)
            return
        self._place = Place(epoch, 0, self._place.first_epoch)
        self._state.begin_epoch()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Saves, if it is time to."""
        self._batches += batch + 1 - self._place.step
        self._place = Place(self._place.epoch, batch + 1, self._place.first_epoch)
        self._logs = {k: v for k, v in (logs or {}).items() if isinstance(v, (int, float))}
        due = self._count is not None and self._count.due(batch)
        self._save_if(due, stops=self._notice.after_step())

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Saves, if it is time to."""
        self._place = Place(epoch + 1, 0, self._place.first_epoch)
        self._logs = {}
        self._state.begin_epoch()
        self._save_if(self._every == "epoch", stops=self._notice.agreed())

    def on_train_end(self, logs: Any = None) -> None:
        """Saves the end of the run, from which a `fit` of more epochs goes on."""
        self._notice.ignore()
        if self._pending is not None:  # nothing was left to do
            self._ready(self._pending)
        elif self._batches != self._saved_at:
            self._save()

    # --- saving --------------------------------------------------------------------------------

    def _save_if(self, due: bool, stops: bool) -> None:
        """Saves if it is time to, or if the run is to stop, and ends the process then."""
        if due or stops:
            self._save()
        if stops:
            logging.warning(
                "tfaccel: SIGTERM: saved after batch %d of epoch %d; exit code %d, run again to go "
                "on.",
                *(self._place.step, self._place.epoch + 1, PREEMPTED),
            )
            self._notice.ignore()
            raise SystemExit(PREEMPTED)

    def _save(self) -> None:
        self._saved_at = self._batches
        checks = getattr(self._strategy, "checks", None)
        verdict = checks.verdict(self.model) if isinstance(checks, Checks) else None
        state = self._state.state(
            self._place, self._batches, self._logs, self._random_at_start, verdict
        )
        cluster = getattr(self._strategy, "cluster", None)
        pieces = [*run_variables.pieces(self.model, self._strategy), *state.pieces(cluster)]
        path = store.folder(self._directory, self._batches)
        write(self._strategy, path, pieces, state.texts(cluster), store.seal)
        if cluster is None or cluster.is_chief:
            store.keep_newest(self._directory, self._keep)

    # --- going on ------------------------------------------------------------------------------

    def _newest(self) -> str:
        """The newest whole checkpoint, as the chief finds it."""
        cluster = getattr(self._strategy, "cluster", None)
        found = store.newest(self._directory) if cluster is None or cluster.is_chief else ""
        return found if cluster is None else broadcast_text(self._strategy, found)

    def _begin_from(self, path: str) -> None:
        self._path, self._reader = path, open_folder(path)
        cluster = getattr(self._strategy, "cluster", None)
        state = self._pending = run_state.read_state(path, self._reader, cluster)
        self._place, self._batches, self._logs = state.place, state.batches, state.logs
        self._saved_at = self._batches
        if self._count is not None:
            self._count.go_on(state.place.step, self._batches)
        missing = self._restore_variables(self._reader)
        if state.verdict is not None and isinstance(self._strategy.checks, Checks):
            self._strategy.checks.keep_verdict(self.model, state.verdict)
        self._state.put_callbacks(state)
        epochs = int(self.params.get("epochs") or 0)
        logging.info(
            "tfaccel: going on from %s: epoch %d, batch %d.",
            path,
            state.place.epoch + 1,
            state.place.step + 1,
        )
        adapter, place = self._fit.adapter, state.place
        in_python = data_replay.reads_in_python(adapter)
        before = place.epoch - place.first_epoch
        alike = data_replay.passes_are_alike(adapter) and not self._fit.epochs.steps_per_epoch
        if before and not in_python and not alike:
            logging.info("tfaccel: the data of %d earlier epochs are read again.", before)
        _private.start_within_epoch(
            self.model,
            self._fit.epochs,
            max(epochs, place.epoch) if state.stopped and not place.step else place.epoch,
            _private.EpochStart(
                step=place.step,
                epochs_before=min(before, 1) if in_python else before,
                whole=data_replay.has_threads(adapter) if in_python else not alike,
                warm=bool(missing),
                data_ready=lambda: self._state.put_data(state) if before and place.step else None,
                ready=lambda: self._ready(state) if place.step else None,
                logs=state.logs,
            ),
        )

    def _restore_variables(self, reader: Reader) -> list[str]:
        missing, unknown = run_variables.restore(self.model, self._strategy, reader)
        self._refuse(unknown, "has nothing of that shape for")
        return missing

    def _ready(self, state: RunState) -> None:
        """Sets everything back to what it was; the next batch is the one after the checkpoint."""
        self._pending = None
        missing = self._restore_variables(self._reader)
        self._refuse(missing, "also has")
        if state.place.step == 0:
            self.model.reset_metrics()  # as fit does, and before they held what validation left
        self._state.put_callbacks(state)
        if state.place.step:
            self.model.stop_training = state.stopped
        else:
            self._state.put_dataset(state)
        if not (state.place.step and data_replay.reads_in_python(self._fit.adapter)):
            self._state.put_random(state)

    def _refuse(self, names: list[str], has: str) -> None:
        if names:
            raise CheckpointError(
                f"tfaccel: the checkpoint {self._path} {has} {', '.join(names[:3])} (of "
                f"{len(names)} variables), expected the model and the strategy that were saved; "
                "give each run a directory of its own."
            )


class _BeforeAll(keras.callbacks.Callback):  # type: ignore[misc]
    """Sets a run that goes on between two epochs back before the other callbacks begin the next."""

    def __init__(self, resume: Resume) -> None:
        super().__init__()
        self._resume = resume

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Acts in the first epoch, if none of its steps were taken."""
        pending = self._resume._pending
        if pending is not None and not pending.place.step:
            self._resume._ready(pending)
