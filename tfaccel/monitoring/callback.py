"""The callback: measures a `fit`, window by window, and reports what bounds it."""

from __future__ import annotations

import os
from typing import Any

import keras
import tensorflow as tf

from tfaccel.distribute import _private
from tfaccel.errors import MonitorError
from tfaccel.monitoring.log_files import prepare
from tfaccel.monitoring.records import Record
from tfaccel.monitoring.session import Session
from tfaccel.monitoring.settings import Settings
from tfaccel.monitoring.verdict import Verdict


def monitor(
    strategy: tf.distribute.Strategy,
    directory: str | os.PathLike[str] | None = None,
    every: int | None = None,
    peak_tflops: float | None = None,
    verbose: bool = True,
) -> keras.callbacks.Callback:
    """A callback that measures where the time of a `fit` goes, on every worker.

    Each step is divided into waiting for input, computing, communication that computing does not
    hide, and Python between steps (callbacks). The chief prints a line for each window of steps,
    and at the end a table, what bounds the run and what to change. What cannot be measured is
    shown as ``-``, with the reason.

    Every worker must pass one to `fit`: once per window they exchange a few numbers.

    Args:
        strategy: what `tfaccel.strategy` returned.
        directory: for `worker-N.jsonl` of each worker, scalars of TensorBoard and `report.html`;
            None writes no files.
        every: steps of a window; None for about ten seconds.
        peak_tflops: the peak of one device in TFLOP/s, for the utilization (MFU); None takes it
            from a table of accelerators, if listed there.
        verbose: whether the chief prints.

    Raises:
        MonitorError: `every` is less than one step; in `fit`, the model belongs to another
            strategy, the directory cannot be written to, or there is another monitor.

    Example:
        ```python
        model.fit(x, y, callbacks=[tfaccel.monitor(strategy, "run/monitor")])
        ```
    """
    if every is not None and every < 1:
        raise MonitorError(f"tfaccel: every is {every}; expected at least 1 step in a window.")
    where = None if directory is None else os.fspath(directory)
    return Monitor(strategy, Settings(where, every, peak_tflops, verbose))


class Monitor(keras.callbacks.Callback):  # type: ignore[misc]
    """See `monitor`, which creates it.

    Attributes:
        async_safe: so that Keras runs callbacks asynchronously wherever it would without this one.
        sees_whole_calls: so that a TPU still runs several steps in a call.
    """

    async_safe = True
    sees_whole_calls = True

    def __init__(self, strategy: Any, settings: Settings) -> None:
        super().__init__()
        self._strategy, self._settings = strategy, settings
        self._session: Session | None = None
        self._measures = False

    @property
    def record(self) -> Record:
        """The measurements of the last `fit` so far, of all workers."""
        return Record() if self._session is None else self._session.record

    @property
    def verdict(self) -> Verdict | None:
        """What bounds the last `fit`; None before its end."""
        return None if self._session is None else self._session.verdict

    def on_train_begin(self, logs: Any = None) -> None:
        """Starts measuring."""
        fit = _private.running_fit()
        if fit is None:
            raise MonitorError(
                "tfaccel: tfaccel.monitor was called outside of model.fit; expected it among the "
                "callbacks of fit: a custom loop does not report where a step begins."
            )
        strategy = self.model.distribute_strategy
        if strategy is not self._strategy:
            raise MonitorError(
                f"tfaccel: tfaccel.monitor was given a {type(self._strategy).__name__} and the "
                f"model is of a {type(strategy).__name__}; expected one strategy: build the model "
                "inside `with strategy.scope():`."
            )
        monitors = sum(isinstance(one, Monitor) for one in fit.callbacks.callbacks)
        if monitors > 1:
            raise MonitorError(
                f"tfaccel: fit was given tfaccel.monitor {monitors} times; expected it once among "
                "its callbacks, since only the last one would measure; leave out the others "
                "(--monitor of tfaccel.flags adds one to flags.callbacks)."
            )
        cluster = getattr(strategy, "cluster", None)
        prepare(self._settings.directory, 0 if cluster is None else cluster.rank)
        self._session = Session(self._strategy, self.model, fit, self._settings)
        self._measures = True

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """An epoch begins."""
        if self._measures and self._session is not None:
            self._session.epoch_begins(self)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Ends a window, if it is due."""
        if self._measures and self._session is not None:
            self._session.call_begins(batch)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """The results of a call have arrived."""
        if self._measures and self._session is not None:
            self._session.results_are_there(batch)

    def on_train_end(self, logs: Any = None) -> None:
        """Ends the last window, and reports what bounds the run."""
        if self._measures and self._session is not None:
            self._measures = False
            self._session.end(stopped=bool(self.model.stop_training))
