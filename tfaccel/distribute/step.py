"""What a replica knows while it runs its part of a Keras step: its share of the batch."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from tfaccel.distribute.ways import ROWS, SCALED, SUM, Ways

_here = threading.local()


@dataclass
class Step:
    """One replica's part of one Keras step, while it is traced or run.

    Attributes:
        share: scalar float32 tensor, this replica's rows over all rows of the batch.
        starved: whether some replica has no rows of its own, so that anything a replica computed
            may be NaN and must count for nothing where its share is zero.
        whole: whether every replica has all rows of the batch, which are the first one's: losses
            are those of one device, and only what comes of them is weighted by the shares.
        alone: whether this replica trains on its own rows as if there were no others.
        weighted: ids of the optimizers whose loss has been multiplied by `share` already.
        real: which of our rows are no copies (bool, shape `[rows]`); None where all are.
        loss_mask: what the loss that is being computed leaves out by itself; None for nothing.
        rows: how many rows we have, copies counted, where that is known when the step is traced.
        averages: whether the step ends with an average of the model's statistics.
        kept: ids of variables that are one device's already, and not to be averaged.
        gradients: those that a step of the user's own takes (`tfaccel.distribute.gradients`); None
            in a step of Keras's, whose optimizer puts them together.
        summed: ids of the optimizers whose loss has a number for each row, which is not weighted.
        ways: how what replicas say is put together.
        recorded: the gradients of the whole batch, as pairs of variables and gradients, if somebody
            wants to see them.
    """

    share: tf.Tensor
    starved: bool = False
    whole: bool = False
    alone: bool = False
    weighted: set[int] = field(default_factory=set)
    real: tf.Tensor | None = None
    loss_mask: tf.Tensor | None = None
    rows: int | None = None
    averages: bool = False
    kept: set[int] = field(default_factory=set)
    gradients: Any = None
    summed: set[int] = field(default_factory=set)
    ways: Ways = field(default_factory=Ways)
    recorded: list[tuple[list[Any], list[Any]]] | None = None

    def weight(self, value: Any) -> Any:
        """`value` times our share; IndexedSlices and None are welcome."""
        if value is None:
            return None
        if isinstance(value, tf.IndexedSlices):
            return tf.IndexedSlices(self.weight(value.values), value.indices, value.dense_shape)
        share = tf.cast(self.share, value.dtype)
        return tf.math.multiply_no_nan(value, share) if self.starved else value * share

    @property
    def sums_next(self) -> bool:
        """Whether the next gradient is of a loss that is summed over replicas (`ways.py`)."""
        taken = self.gradients
        return taken is not None and not self.alone and self.ways.gradient(taken.calls) != ROWS

    def part(self, value: tf.Tensor, way: str) -> tf.Tensor:
        """Our part of a number about the batch, so that the sum over replicas is the whole."""
        if way == SUM:
            return self.some(value) if self.starved else value
        if way == SCALED:
            value *= tf.cast(tf.distribute.get_strategy().placement.replicas, value.dtype)
        return self.weight(value)

    def some(self, value: Any) -> Any:
        """`value`, or zeros where we have no rows."""
        have = tf.cast(self.share > 0, tf.float32)
        return Step(have, starved=True).weight(value)


def current() -> Step | None:
    """The step that this thread is in, or None outside a Keras step."""
    return getattr(_here, "step", None)


@contextlib.contextmanager
def entered(step: Step) -> Iterator[Step]:
    """Makes `step` the current one of this thread (each replica is traced in its own)."""
    before = current()
    _here.step = step
    try:
        yield step
    finally:
        _here.step = before


@contextlib.contextmanager
def as_one_device() -> Iterator[None]:
    """Makes this thread run plain Keras, on the variables of one replica."""
    before = on_one_device()
    _here.alone = True
    try:
        yield
    finally:
        _here.alone = before


def on_one_device() -> bool:
    """Whether we are in `as_one_device`."""
    return getattr(_here, "alone", False)


@contextlib.contextmanager
def checking() -> Iterator[None]:
    """While the first-step check runs a step, in all threads: replicas are traced in their own."""
    global _checks
    _checks += 1
    try:
        yield
    finally:
        _checks -= 1


def is_checking() -> bool:
    """Whether we are in `checking`."""
    return _checks > 0


_checks = 0


def all_reduce_sum(values: Any) -> Any:
    """Sums each tensor of a nest over all replicas; call it in a replica's context."""
    context = tf.distribute.get_replica_context()
    placement = getattr(context.strategy, "placement", None)
    if placement is not None and placement.replicas == 1:
        return values  # TensorFlow would copy them
    return context.all_reduce(tf.distribute.ReduceOp.SUM, values)


def known_rows(batch: Any) -> int | None:
    """The number of rows of a replica's batch, where it is known when the step is traced."""
    shapes = [getattr(leaf, "shape", None) for leaf in tf.nest.flatten(batch) if leaf is not None]
    sizes = [shape[0] for shape in shapes if shape is not None and shape.rank]
    return sizes[0] if sizes else None


def share_of(batch: Any) -> tf.Tensor:
    """Our rows over all rows, where only the replicas themselves can count them."""
    rows = tf.cast(tf.shape(tf.nest.flatten(batch)[0])[0], tf.float32)
    return tf.math.divide_no_nan(rows, all_reduce_sum(rows))


def all_reduce_packed(tensors: list[tf.Tensor]) -> list[tf.Tensor]:
    """Sums many small tensors over all replicas in one message (two, where some are integers).

    Args:
        tensors: numbers of any shape, the same shapes and dtypes on every replica.

    Returns:
        The sums, in order, each in its tensor's own dtype. They travel as float32 and int64 (int32
        on a TPU).
    """
    sums: dict[int, tf.Tensor] = {}
    widest = getattr(tf.distribute.get_strategy(), "integer", tf.int64)
    for wire, integer in ((tf.float32, False), (widest, True)):
        chosen = [i for i, t in enumerate(tensors) if t.dtype.is_integer == integer]
        if not chosen:
            continue
        flat = [tf.reshape(tf.cast(tensors[i], wire), [-1]) for i in chosen]
        total = all_reduce_sum(tf.concat(flat, axis=0))
        parts = tf.split(total, [tf.size(t) for t in flat])
        for i, part in zip(chosen, parts, strict=True):
            whole = tf.reshape(part, tf.shape(tensors[i]))
            sums[i] = tf.cast(tf.ensure_shape(whole, tensors[i].shape), tensors[i].dtype)
    return [sums[i] for i in range(len(tensors))]


def wire_dtype(dtype: tf.DType) -> tf.DType:
    """The dtype in which tensors of `dtype` can travel between workers without loss.

    TensorFlow's collectives take float16, float32, float64, int32 and int64.

    >>> wire_dtype(tf.bfloat16)
    tf.float32
    """
    if dtype == tf.bfloat16:
        return tf.float32
    if dtype.is_bool or (dtype.is_integer and dtype.size < 4):
        return tf.int32
    if dtype in (tf.uint32, tf.uint64):
        return tf.int64
    return dtype
