"""How long each callback takes between two steps: a mark before and after each in Keras's list."""

from __future__ import annotations

import inspect
import os
import threading
import time
from typing import Any

import keras

from tfaccel.monitoring.run import Cause

_OF_KERAS = (keras.callbacks.History, keras.callbacks.ProgbarLogger)


class CallbackTimes:
    """The time of the batch hooks of each callback."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[Any, str], float] = {}
        self._thread = threading.get_ident()
        self._last = 0.0

    def marked(self, callbacks: list[Any], monitor: Any) -> list[Any]:
        """A list of callbacks with marks; unchanged if all are Keras's own, which cost little.

        Args:
            callbacks: of a `fit`.
            monitor: the monitor, before which no mark is needed.
        """
        if all(one is monitor or type(one) in _OF_KERAS for one in callbacks):
            return callbacks
        marked: list[Any] = [_Mark(self, None)]
        for one in callbacks:
            marked += [one, _Mark(self, one)]
        return marked

    def passed(self, callback: Any, hook: str) -> None:
        """A callback, or None, has run since the last mark."""
        if threading.get_ident() != self._thread:
            return  # Keras runs them asynchronously
        now = time.perf_counter()
        if callback is not None:
            key = callback, hook
            self.seconds[key] = self.seconds.get(key, 0.0) + now - self._last
        self._last = now

    def causes(self, steps: int) -> list[Cause]:
        """The callbacks and their times in this many steps, since the last call."""
        taken, self.seconds = self.seconds, {}
        return [
            Cause("host", f"in {type(one).__name__}.{hook}{_place(one, hook)}", seconds, steps)
            for (one, hook), seconds in taken.items()
        ]


class _Mark(keras.callbacks.Callback):  # type: ignore[misc]
    """Runs after a callback.

    Args:
        of: where it reports.
        callback: the one before it.
    """

    async_safe = True

    def __init__(self, of: CallbackTimes, callback: Any) -> None:
        super().__init__()
        self._of, self._callback = of, callback

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Records that the callback has run."""
        self._of.passed(self._callback, "on_train_batch_begin")

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Records that the callback has run."""
        self._of.passed(self._callback, "on_train_batch_end")


def _place(callback: Any, hook: str) -> str:
    """The location of a hook: `` at train.py:40``."""
    function = inspect.unwrap(getattr(type(callback), hook))
    hook_function = vars(callback).get(hook)  # a LambdaCallback's
    code = getattr(hook_function, "__code__", None) or getattr(function, "__code__", None)
    if code is None:
        return ""
    return f" at {os.path.basename(code.co_filename)}:{code.co_firstlineno}"
