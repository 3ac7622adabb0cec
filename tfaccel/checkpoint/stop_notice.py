"""SIGTERM as a notice: the run saves after a step that all workers agree on, and ends.

A scheduler that takes a machine away, or a launcher that ends a job, sends SIGTERM and waits for
some seconds. TensorFlow catches that signal and trains on. One worker may have it and others not,
so the workers tell each other now and then: about once a second, since it costs a collective.
"""

from __future__ import annotations

import contextlib
import signal
import time
from typing import Any

import tensorflow as tf

from tfaccel.distribute import _private

_LOOK_EVERY_S = 1.0


class StopNotice:
    """Hears SIGTERM while a `fit` runs, and says when all workers know of it.

    Args:
        strategy: of the `fit`.
    """

    def __init__(self, strategy: Any) -> None:
        self._strategy = strategy
        self._cluster = getattr(strategy, "cluster", None)
        self._received = False
        self._steps, self._next_look, self._looked_at = 0, 1, time.monotonic()
        self._listens = False
        self._before: Any = None

    def listen(self) -> None:
        """Takes the signal, which TensorFlow has taken when its strategy was made."""
        with contextlib.suppress(ValueError):  # another thread than the main one has no signals
            self._before = signal.signal(signal.SIGTERM, self._receive)
            self._listens = True

    def ignore(self) -> None:
        """Gives the signal back."""
        if self._listens:
            # A handler that is not Python's, which cannot be given back, is TensorFlow's.
            before = signal.SIG_DFL if self._before is None else self._before
            signal.signal(signal.SIGTERM, before)
            self._listens = False

    def after_step(self) -> bool:
        """Whether any worker was told to stop, as far as all know; every worker must call."""
        self._steps += 1
        if self._cluster is None:
            return self._received
        return self._steps >= self._next_look and self.agreed()

    def agreed(self) -> bool:
        """Whether any worker was told to stop; every worker must call."""
        if self._cluster is None:
            return self._received
        now = time.monotonic()
        seconds = (now - self._looked_at) / max(1, self._steps)
        # As the chief counts, so that all look after the same step.
        pause = round(_LOOK_EVERY_S / max(seconds, 1e-4)) if self._cluster.is_chief else 0
        told = tf.constant([int(self._received), max(pause, int(self._cluster.is_chief))])
        (summed,) = self._strategy.sum_over_workers([told])
        received, pause = (int(number) for number in summed.numpy())
        self._steps, self._next_look, self._looked_at = 0, pause, now
        return received > 0

    def _receive(self, *_: Any) -> None:
        if _private.running_fit() is not None:
            self._received = True
        else:  # it has ended by an error: the signal means what it meant before
            self.ignore()
            signal.raise_signal(signal.SIGTERM)
