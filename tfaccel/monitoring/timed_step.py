"""Records when Keras's step function requests a batch, receives it, and returns.

`fit` passes an iterator to that function, which takes its batches from it: a timed call and a timed
iterator see everything. With the iterator of a `tf.data.Dataset` (strategy `one_device`) Keras
takes the batch inside a `tf.function`, where it is invisible: with one step per call it is taken
beforehand, and with several the wait for input is not measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tfaccel.distribute.worker_activity import worker_activity
from tfaccel.monitoring.split import Moments

Clock = Callable[[], float]


class TimedStep:
    """Keras's step function, timed.

    Args:
        function: as `model.train_function`.
        steps: in a call of it.
        see_batch: called with each batch.
        clock: in seconds.

    Attributes:
        function: the same.
        steps_in_call: the same number.
        label: of the next call, which identifies it in `done`.
        steps_seen: how many steps it has taken.
        input_is_seen: whether the wait for input could be measured so far.
        is_announced: whether the next call is one of the measured `fit`; others are not timed.
            None where calls are not announced.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        steps: int,
        see_batch: Callable[[Any], None],
        clock: Clock = time.perf_counter,
    ) -> None:
        self.function = self.__wrapped__ = function
        self.steps_in_call = steps
        self.steps_seen = self.label = 0
        self.input_is_seen = True
        self.is_announced: bool | None = None
        self._see_batch = see_batch
        self._clock = clock
        self._moments: list[Moments] = []
        self._done: dict[int, float] = {}  # by label
        self._last_of_call: dict[int, int] = {}  # indices of moments
        self._before = clock()
        self._requested_at: float | None = None
        self._received_at = 0.0
        self._collective = worker_activity.collective_s
        self._collective_host = self._collective_input = 0.0

    def begin(self) -> float:
        """Restarts the clock: the first step of an epoch begins.

        Returns:
            The seconds since the last step, which are not counted.
        """
        before, self._before = self._before, self._clock()
        self._collective = worker_activity.collective_s
        return self._before - before

    def __call__(self, iterator: Any) -> Any:
        """Takes the step or steps of one call."""
        if self.is_announced is False:
            return self.function(iterator)
        if self.is_announced:
            self.is_announced = False
        if isinstance(iterator, (tf.data.Iterator, tf.distribute.DistributedIterator)):
            if self.steps_in_call > 1 or not isinstance(iterator, tf.data.Iterator):
                return self._whole(iterator)
            timed_iterator: Any = _OutsideOfGraph(self, iterator)
        else:
            timed_iterator = _Timed(self, iterator)
        before = len(self._moments)
        try:
            return self.function(timed_iterator)
        finally:
            self._end_step(self._clock())
            self._end_call(len(self._moments) - before)

    def _whole(self, iterator: Any) -> Any:
        """A call that takes its batches invisibly."""
        self.input_is_seen = False
        self.request_batch()
        self.receive_batch(None)
        try:
            return self.function(iterator)
        finally:
            self._end_step(self._clock())
            self._end_call(self.steps_in_call)

    def request_batch(self) -> None:
        """A batch is requested; the previous step in this call has ended."""
        now = self._clock()
        self._end_step(now)
        self._requested_at = now
        self._collective_host = worker_activity.collective_s - self._collective

    def receive_batch(self, batch: Any) -> None:
        """The batch has arrived."""
        self._received_at = self._clock()
        collective_s = worker_activity.collective_s - self._collective
        self._collective_input = collective_s - self._collective_host
        if batch is not None:
            self._see_batch(batch)

    def end_data(self) -> None:
        """There is no further batch."""
        self._requested_at = None

    def done(self, label: int) -> None:
        """The results of a call have arrived; possibly called by another thread, and later."""
        self._done[label] = self._clock()

    def leave_out(self, seconds: float, collective_s: float) -> None:
        """Subtracts the monitor's own time since the last step."""
        self._before += seconds
        self._collective += collective_s

    def _end_step(self, now: float) -> None:
        if self._requested_at is None:
            return
        collective = self._collective_host, self._collective_input
        moments = Moments(
            self._before, self._requested_at, self._received_at, now, None, *collective
        )
        self._moments.append(moments)
        self._requested_at, self._before = None, now
        self._collective = worker_activity.collective_s

    def _end_call(self, steps: int) -> None:
        self.steps_seen += steps
        if self._moments:
            self._last_of_call[self.label] = len(self._moments) - 1

    def take(self) -> list[Moments]:
        """The steps since the last call."""
        steps, self._moments = self._moments, []
        for label, at in self._last_of_call.items():
            if (done := self._done.get(label)) is not None and done > steps[at].received_at:
                steps[at] = steps[at]._replace(done=done)
        self._last_of_call, self._done = {}, {}
        return steps


class _Timed:
    """An iterator that records when a batch is requested."""

    _tfaccel_feed = True

    def __init__(self, of: TimedStep, iterator: Any) -> None:
        self._of, self._iterator = of, iterator

    def __iter__(self) -> Iterator[Any]:
        self._iterator = iter(self._iterator)
        return self

    def __next__(self) -> Any:
        self._of.request_batch()
        try:
            batch = next(self._iterator)
        except BaseException:
            self._of.end_data()
            raise
        self._of.receive_batch(batch)
        return batch


class _OutsideOfGraph(_Timed):
    """A dataset's iterator, from which one batch is taken."""

    def __next__(self) -> Any:
        try:
            return super().__next__()
        except StopIteration:
            raise tf.errors.OutOfRangeError(None, None, "End of the dataset") from None
