"""Preemption: on SIGTERM the run saves after a step that all workers agree on, and ends.

A scheduler that preempts a machine, or a launcher that ends a job, sends SIGTERM and waits for a
few seconds. TensorFlow catches that signal and keeps training. One worker may receive it and others
not, so the workers exchange it periodically: about once per second, since it costs a collective. In
the same way they learn that one of them failed to write in the background.

Until the first step is done there is nothing to save: before the `fit` and while the step is traced
all end at once. A Python signal handler does not interrupt compilation: there a thread ends all of
them a little later. The same thread ends them where no later step ends in time (a new shape is
compiled, data do not come): who has sent the signal would kill them soon.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from absl import logging

from tfaccel.distribute import _private, worker_liveness
from tfaccel.exit_codes import PREEMPTED
from tfaccel.signals import SignalReader

_POLL_INTERVAL_S = 1.0
_FIRST_STEP_S = 10.0  # how long to wait for a first step after the signal
_NEXT_STEP_S = 25.0  # for a later one: Kubernetes and Slurm kill after 30 seconds
_TIMES_LONGEST = 2.0  # where steps take longer than that


class PreemptionHandler:
    """Handles SIGTERM until a `fit` has ended, and reports when all workers know.

    Attributes:
        before_stop: called before a run that has taken no step yet ends at once.
        knows_of_failure: whether any worker has failed, as far as all know.
        saves: whether a step waits for a checkpoint to be written, which is not cut off.
    """

    def __init__(self) -> None:
        self._strategy: Any = None
        self._cluster: Any = None
        self._failed: Callable[[], bool] = lambda: False
        self.knows_of_failure = self.saves = self._received = False
        self._steps, self._next_look, self._looked_at = 0, 1, time.monotonic()
        self._listens = self._has_stepped = self._stops = False
        self._stepped_at, self._longest_s = time.monotonic(), 0.0
        self._before: Any = None
        self._reader: SignalReader | None = None
        self._timer: threading.Timer | None = None
        self._fit: _private.RunningFit | None = None
        self._fit_thread = threading.get_ident()
        self.before_stop: Callable[[], None] = lambda: None
        other = _current_handler()
        if isinstance(other, PreemptionHandler) and other._has_failed():
            other.ignore()
        if not isinstance(_current_handler(), PreemptionHandler):
            self._listen()
        _unused.add(self)

    def begin(self, fit: _private.RunningFit, strategy: Any, failed: Callable[[], bool]) -> None:
        """Starts handling, when the `fit` begins.

        Args:
            fit: that is running.
            strategy: of the `fit`.
            failed: whether this worker has an error that all are to raise.
        """
        _unused.discard(self)
        self._fit, self._strategy, self._failed = fit, strategy, failed
        self._cluster = getattr(strategy, "cluster", None)
        self._fit_thread = threading.get_ident()
        other = _current_handler()
        if isinstance(other, PreemptionHandler) and not (other is self or other._fit):
            other._restore()
        if other is not self:
            self._listen()
        elif _in_main_thread():  # TensorFlow may have taken it without Python knowing
            signal.signal(signal.SIGTERM, self._receive)

    def _listen(self) -> None:
        """Takes the signal, which TensorFlow takes when its strategy is made."""
        with contextlib.suppress(ValueError):  # only the main thread gets signals
            self._before = signal.signal(signal.SIGTERM, self._receive)
            self._listens = True
            self._reader = SignalReader([signal.SIGTERM], self._receive_in_thread)

    def ignore(self) -> None:
        """Restores the handler, or that of a later `fit`; outside the main thread `_receive` will.

        Handlers that were created before this `fit` ended have left the signal to this one.
        """
        _unused.discard(self)
        self._restore()
        if _in_main_thread() and not isinstance(_current_handler(), PreemptionHandler):
            for later in list(_unused)[:1]:
                later._listen()

    def _restore(self) -> None:
        """Restores the handler from before this one."""
        self._await_step_no_more()
        if self._reader is not None and _in_main_thread():
            self._reader.close()
            self._reader = None
        if self._listens and _in_main_thread():
            # A handler that was not set from Python cannot be restored; it is TensorFlow's.
            before = signal.SIG_DFL if self._before is None else self._before
            signal.signal(signal.SIGTERM, before)
            self._listens = False

    def begin_phase(self) -> None:
        """Starts steps of another kind and duration; every worker must call."""
        self._steps, self._next_look, self._looked_at = 0, 1, time.monotonic()

    def after_step(self) -> bool:
        """Whether all know of a stop request to any worker; every worker must call."""
        now = time.monotonic()
        if self._has_stepped:
            self._longest_s = max(self._longest_s, now - self._stepped_at)
        self._has_stepped, self._stepped_at = True, now
        self._steps += 1
        return (self._cluster is None or self._steps >= self._next_look) and self.agreed()

    def agreed(self) -> bool:
        """Whether any worker got a stop request; every worker must call."""
        self._stops = self._agreed()
        if self._stops:
            self._await_step_no_more()
        return self._stops

    def _agreed(self) -> bool:
        if self._cluster is None:
            self.knows_of_failure = self._failed()
            return self._received
        now = time.monotonic()
        seconds = (now - self._looked_at) / max(1, self._steps)
        # The chief's count, so that all check after the same step.
        pause = round(_POLL_INTERVAL_S / max(seconds, 1e-4)) if self._cluster.is_chief else 0
        pause = max(pause, int(self._cluster.is_chief))
        flags = tf.constant([int(self._received), int(self._failed()), pause])
        (summed,) = self._strategy.sum_over_workers([flags])
        received, failed, pause = (int(number) for number in summed.numpy())
        self.knows_of_failure = failed > 0
        self._steps, self._next_look, self._looked_at = 0, pause, now
        return received > 0

    def _receive(self, *_: Any) -> None:
        if self._has_failed():  # the previous handler applies
            self.ignore()
            signal.raise_signal(signal.SIGTERM)
        elif not self._has_stepped and not (self._fit and tf.executing_eagerly()):
            self._stop_at_once()
        else:
            self._received = True

    def _receive_in_thread(self, _: signal.Signals) -> None:
        """Gives the step some time: it is not interrupted where it is compiled."""
        # A failed fit may have left a reader, whose signals another one handles now.
        if _current_handler() is self and self._timer is None and not self._stops:
            self._wait_for_step()

    def _wait_for_step(self) -> None:
        wait_s = max(_NEXT_STEP_S, _TIMES_LONGEST * self._longest_s)
        self._timer = threading.Timer(
            wait_s if self._has_stepped else _FIRST_STEP_S, self._stop_without_step
        )
        self._timer.daemon = True
        self._timer.start()

    def _has_failed(self) -> bool:
        """Whether the `fit` has begun, and failed."""
        running = _private.running_fits(self._fit_thread)
        return self._fit is not None and all(
            each.callbacks is not self._fit.callbacks for each in running
        )

    def _await_step_no_more(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _stop_at_once(self) -> None:
        """Ends all workers: none has completed the first step, which they take together."""
        self.ignore()
        self._stop_others()
        raise SystemExit(PREEMPTED)

    def _stop_without_step(self) -> None:
        """As `_stop_at_once`, from another thread than the one that runs the step."""
        if self.saves:
            self._wait_for_step()
        elif not (self._has_failed() or self._stops) and _current_handler() is self:
            self._stop_others()
            sys.stdout.flush()
            os._exit(PREEMPTED)

    def _stop_others(self) -> None:
        if self._has_stepped:
            elapsed = f"no step has ended for {time.monotonic() - self._stepped_at:.0f} s"
            why = f"{elapsed}, so nothing more is saved"
        else:
            self.before_stop()
            why = "stopped before the first step"
        logging.warning("tfaccel: SIGTERM: %s; exit code %d, run again to resume.", why, PREEMPTED)
        worker_liveness.stop_all(PREEMPTED)


_unused: weakref.WeakSet[PreemptionHandler] = weakref.WeakSet()
"""Those whose `fit` has not begun."""


def _in_main_thread() -> bool:
    """Whether handlers may be set here."""
    return threading.current_thread() is threading.main_thread()


def _current_handler() -> Any:
    """The object whose method is the signal's handler."""
    return getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
