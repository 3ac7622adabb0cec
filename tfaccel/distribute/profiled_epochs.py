"""The steps of a `fit` under TensorFlow's default strategy, counted for a profile.

Other strategies count the batches that they hand out (`batch_iterator.py`). Here Keras takes them
inside a `tf.function`, so its own iterator over an epoch is watched: with `steps_per_execution` it
gives a call of several steps at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfaccel.distribute import _private, scope
from tfaccel.distribute.mixins import mix_in
from tfaccel.distribute.profile import profiler


class ProfilesFits:
    """Mixin for TensorFlow's default strategy: counts the steps of each `fit`."""

    def experimental_distribute_dataset(self, dataset: Any, options: Any = None) -> Any:
        """As TensorFlow's."""
        caller = _private.calling_model()
        own = caller is not None and scope.strategy_of(caller.model) is None
        if caller is not None and own and caller.method == "fit" and not caller.validates:
            mix_in(caller.epoch, CountsSteps)
        return super().experimental_distribute_dataset(dataset, options)  # type: ignore[misc]


class CountsSteps:
    """Mixin for Keras's iterator over the calls of an epoch."""

    _tfaccel_in_call = False

    def __next__(self) -> tuple[int, int, Any]:
        profiler.step_ends()
        self._tfaccel_in_call = False
        begin, end, iterator = super().__next__()  # type: ignore[misc]
        self._tfaccel_in_call = True
        profiler.step_begins(end - begin + 1)
        return begin, end, iterator

    def reset(self) -> None:
        """Keras resets it after it has inspected a batch."""
        self._was_none()
        super().reset()  # type: ignore[misc]

    @contextlib.contextmanager
    def catch_stop_iteration(self) -> Iterator[None]:
        """Where the number of batches is unknown, the call after the last one finds none."""
        with super().catch_stop_iteration():  # type: ignore[misc]
            try:
                yield
            except (StopIteration, tf.errors.OutOfRangeError):
                self._was_none()
                raise

    def _was_none(self) -> None:
        if self._tfaccel_in_call:
            self._tfaccel_in_call = False
            profiler.step_was_none()


def profile_fits_of(strategy: Any) -> None:
    """Makes TensorFlow's default strategy count the steps of a `fit`; idempotent."""
    if not tf.distribute.has_strategy():
        mix_in(strategy, ProfilesFits)
