"""Times the epochs of a `fit`, without what comes before the first and after the last."""

from __future__ import annotations

import time
from typing import Any

import keras


class StepTime(keras.callbacks.Callback):
    """Milliseconds per step, for each epoch.

    Args:
        steps: of one epoch.
    """

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._steps = steps
        self._begun = 0.0
        self._ms: list[float] = []

    @property
    def ms(self) -> list[float]:
        """One number per epoch; the first, which compiles, is left out."""
        return self._ms[1:]

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Notes the time."""
        self._begun = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Adds an epoch."""
        self._ms.append((time.perf_counter() - self._begun) / self._steps * 1e3)
