"""How long steps wait for sums over replicas: clocks in the graph of a step.

A reduction that runs beside backpropagation costs a step nothing. It costs from the moment on when
the last of what is summed is there, until the last sum is: those two moments are read inside of the
graph, and the seconds between them are added up in a variable. Nothing waits for the clocks.

They are read on this worker's first replica, in the order of the reductions: the second of a step
counts from the end of the first one at the earliest. Kernels of a GPU run after the operation that
starts them has returned, so that there a clock in the graph would show nothing.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from tfaccel.distribute import context, step


class ReductionClock:
    """Adds up what the steps wait that are traced while it is `active`.

    Attributes:
        placed: how many reductions it was placed around.
    """

    def __init__(self) -> None:
        self.placed = 0
        created: list[tf.Variable] = []

        def make() -> None:
            with tf.device("/CPU:0"):
                created.append(tf.Variable(0.0, trainable=False, dtype=tf.float64))

        # A thread of its own is in no scope of a strategy, which would make it a distributed one.
        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        (self._seconds,) = created

    @property
    def seconds(self) -> float | None:
        """In all steps so far; None where no step was traced with it."""
        return float(self._seconds.numpy()) if self.placed else None

    def start(self, inputs: Any, after: Any = ()) -> tf.Tensor:
        """The moment at which all of `inputs` are there, and `after` too."""
        self.placed += 1
        with tf.device("/CPU:0"):
            last = self._seconds.read_value()
            with tf.control_dependencies([*_tensors(inputs), *_tensors(after)]):
                return _now(tf.identity(last))

    def stop(self, started: tf.Tensor, outputs: Any) -> None:
        """All of `outputs` are there: the seconds since `started` are counted."""
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
    """The clock to place around a reduction that is being traced in a replica; None for none."""
    if not _active or tf.executing_eagerly() or step.is_checking():
        return None
    ctx = step.current()
    if ctx is None or not ctx.averages_statistics or context.local_replica_id() != 0:
        return None
    return _active[0]


@contextmanager
def waiting(inputs: Any, after: Any = ()) -> Iterator[list[Any]]:
    """Counts how long a step waits for a reduction.

    Args:
        inputs: what is reduced.
        after: what else the step computes meanwhile.

    Yields:
        A list for what it is reduced to.
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
    # TensorFlow runs operations with side effects in the order in which they were traced, and takes
    # its clock for one: of several replicas, one would wait for the other. A call of a function
    # declared to have none is not ordered.
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
