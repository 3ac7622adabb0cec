"""How long steps wait for sums over replicas: clocks in the graph of a step.

A reduction that overlaps with backpropagation costs a step nothing. Its cost is the time from when
its last input is ready until its last sum is: both times are read inside the graph, and the seconds
between them are accumulated in a variable. Nothing waits for the clocks.

They are read on this worker's first replica, in the order of the reductions: the second of a step
counts from the end of the first one at the earliest. GPU kernels run after the operation that
launches them has returned, so there a clock in the graph would measure nothing.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from tfaccel.distribute import replica_collectives, step


class ReductionClock:
    """Accumulates the waits of the steps traced while it is `active`.

    Attributes:
        placed: how many reductions it was placed around.
    """

    def __init__(self) -> None:
        self.placed = 0
        created: list[tf.Variable] = []

        def make() -> None:
            with tf.device("/CPU:0"):
                created.append(tf.Variable(0.0, trainable=False, dtype=tf.float64))

        # A separate thread is outside any strategy scope, which would make it a distributed one.
        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        (self._seconds,) = created

    @property
    def seconds(self) -> float | None:
        """Total over all steps so far; None if no step was traced with it."""
        return float(self._seconds.numpy()) if self.placed else None

    def start(self, inputs: Any, after: Any = ()) -> tf.Tensor:
        """The time when all of `inputs` and `after` are ready."""
        self.placed += 1
        with tf.device("/CPU:0"):
            last = self._seconds.read_value()
            with tf.control_dependencies([*_tensors(inputs), *_tensors(after)]):
                return _now(tf.identity(last))

    def stop(self, started: tf.Tensor, outputs: Any) -> None:
        """Adds the seconds from `started` until all of `outputs` are ready."""
        with tf.device("/CPU:0"):
            with tf.control_dependencies(_tensors(outputs)):
                ended = _now(tf.identity(started))
            self._seconds.assign_add(tf.maximum(ended - started, 0.0), read_value=False)


_active: list[ReductionClock] = []


def activate(clock: ReductionClock) -> None:
    """From now on training steps are traced with this clock."""
    _active[:] = [clock]


def deactivate() -> None:
    """From now on steps are traced without a clock."""
    _active.clear()


def current() -> ReductionClock | None:
    """The clock to place around a reduction being traced in a replica, or None."""
    if not _active or tf.executing_eagerly() or step.is_checking():
        return None
    ctx = step.current()
    if ctx is None or not ctx.averages_statistics or replica_collectives.local_replica_id() != 0:
        return None
    return _active[0]


@contextmanager
def waiting(inputs: Any, after: Any = ()) -> Iterator[list[Any]]:
    """Counts how long a step waits for a reduction.

    Args:
        inputs: the values to reduce.
        after: what else the step computes meanwhile.

    Yields:
        A list to fill with the results.
    """
    outputs: list[Any] = []
    clock = current()
    if clock is None:
        yield outputs
        return
    started = clock.start(inputs, after)
    yield outputs
    clock.stop(started, outputs)


def _now(after: tf.Tensor) -> tf.Tensor:
    # TensorFlow runs operations with side effects in trace order, and counts its clock as one: of
    # several replicas, one would wait for the other. A call of a function declared to have none is
    # not ordered.
    (now,) = tf.raw_ops.PartitionedCall(args=[after], Tout=[tf.float64], f=_clock())
    return tf.ensure_shape(now, [])


@functools.cache
def _clock() -> Any:
    @tf.function(autograph=False, input_signature=[tf.TensorSpec([], tf.float64)])
    def now(after: tf.Tensor) -> tf.Tensor:
        with tf.control_dependencies([after]):
            return tf.timestamp()

    with tf.init_scope():
        return now.get_concrete_function()


def _tensors(values: Any) -> list[tf.Tensor]:
    flat = (v for v in tf.nest.flatten(values, expand_composites=True) if v is not None)
    return [v for v in flat if isinstance(v, tf.Tensor)]
