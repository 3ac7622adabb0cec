"""A replica's context while it runs its part of a Keras step: its fraction of the batch."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from tfaccel.distribute.reduction_rules import SCALED_MEAN, SUM, WEIGHTED_MEAN, StepReductions
from tfaccel.distribute.replacements import replaced

_thread_state = threading.local()


@dataclass
class StepContext:
    """One replica's part of one Keras step, while it is traced or run.

    Attributes:
        batch_fraction: scalar float32 tensor, this replica's rows over all rows of the batch.
        has_empty_replicas: whether some replica has no rows of its own, so that anything a replica
            computed may be NaN and must have zero weight where its batch fraction is zero.
        has_global_batch: whether every replica has all rows of the batch, which count for the
            first: losses are those of one device, and only their results are weighted by the batch
            fractions.
        independent: whether this replica trains on its own rows as if there were no others.
        real: which of our rows are not padding copies (bool, shape `[rows]`); None where all are.
        loss_mask: the mask that the current loss applies itself; None for none.
        rows: how many rows the replica has, including copies, if known in tracing.
        averages_statistics: whether the step ends with an average of the model's statistics.
        aggregated: ids of variables that already have one device's value and are not averaged.
        gradients: those that a step takes to train (`tfaccel.distribute.gradients`); None where
            they stay the replica's own.
        reductions: how the replicas' values are combined.
        recorded: the gradients of the global batch, as pairs of variables and gradients, if
            they are requested.
    """

    batch_fraction: tf.Tensor
    has_empty_replicas: bool = False
    has_global_batch: bool = False
    independent: bool = False
    real: tf.Tensor | None = None
    loss_mask: tf.Tensor | None = None
    rows: int | None = None
    averages_statistics: bool = False
    aggregated: set[int] = field(default_factory=set)
    gradients: Any = None
    reductions: StepReductions = field(default_factory=StepReductions)
    recorded: list[tuple[list[Any], list[Any]]] | None = None

    def weight(self, value: Any) -> Any:
        """`value` times the replica's batch fraction; also of IndexedSlices and None."""
        if value is None:
            return None
        if isinstance(value, tf.IndexedSlices):
            return tf.IndexedSlices(self.weight(value.values), value.indices, value.dense_shape)
        fraction = tf.cast(self.batch_fraction, value.dtype)
        return (
            tf.math.multiply_no_nan(value, fraction)
            if self.has_empty_replicas
            else value * fraction
        )

    def real_rows(self, like: Any) -> Any:
        """Which rows of a tensor are not copies (bool, shape `[rows of it]`); None where all are.

        In a step over all rows, all count on the first replica and none on the others, even for a
        tensor with another number of rows than the batch.
        """
        if self.real is None or not self.has_global_batch:
            return self.real
        return tf.repeat(self.batch_fraction > 0, tf.shape(like)[0])

    @property
    def next_gradient_is_summed(self) -> bool:
        """Whether the next gradient's loss is summed over replicas (`reduction_rules.py`)."""
        taken = self.gradients
        return (
            taken is not None
            and not self.independent
            and self.reductions.gradient(taken.calls) != WEIGHTED_MEAN
        )

    def contribution(self, value: tf.Tensor, reduction: str) -> tf.Tensor:
        """Our part of a per-batch number, so that the sum over replicas is the whole."""
        if reduction == SUM:
            return self.zero_if_empty(value)
        if reduction == SCALED_MEAN:
            value *= tf.cast(tf.distribute.get_strategy().placement.replicas, value.dtype)
        return self.weight(value)

    def zero_if_empty(self, value: Any) -> Any:
        """`value`, or zeros where the replica has no rows; also of IndexedSlices and None."""
        if value is None or not self.has_empty_replicas:
            return value
        if isinstance(value, tf.IndexedSlices):
            values = self.zero_if_empty(value.values)
            return tf.IndexedSlices(values, value.indices, value.dense_shape)
        return tf.where(self.batch_fraction > 0, value, tf.zeros_like(value))


def current() -> StepContext | None:
    """The step that this thread is in, or None outside a Keras step."""
    return getattr(_thread_state, "step", None)


@contextlib.contextmanager
def entered(step: StepContext) -> Iterator[StepContext]:
    """Makes `step` the current one of this thread (each replica is traced in its own)."""
    with replaced(_thread_state, "step", step):
        yield step


def as_one_device() -> contextlib.AbstractContextManager[None]:
    """Makes this thread run plain Keras, on the variables of one replica."""
    return replaced(_thread_state, "independent", True)


def on_one_device() -> bool:
    """Whether this is inside `as_one_device`."""
    return getattr(_thread_state, "independent", False)


@contextlib.contextmanager
def checking(equal_rows: bool = False) -> Iterator[None]:
    """While the first-step check runs a step, in all threads: replicas are traced in their own.

    Args:
        equal_rows: whether replicas have the same number of rows.
    """
    _active_checks.append(equal_rows)
    try:
        yield
    finally:
        _active_checks.pop()


def is_checking() -> bool:
    """Whether this is inside `checking`."""
    return bool(_active_checks)


def is_checking_unequal_rows() -> bool:
    """Whether this is inside `checking`, with replicas of unequal numbers of rows."""
    return bool(_active_checks) and not _active_checks[-1]


_active_checks: list[bool] = []


def all_reduce_sum(values: Any) -> Any:
    """Sums each tensor of a nest over all replicas; call it in a replica's context."""
    context = tf.distribute.get_replica_context()
    placement = getattr(context.strategy, "placement", None)
    if placement is not None and placement.replicas == 1:
        return values  # TensorFlow would copy them
    return context.all_reduce(tf.distribute.ReduceOp.SUM, values)


def known_rows(batch: Any) -> int | None:
    """The number of rows of a replica's batch, if known in tracing."""
    shapes = [getattr(leaf, "shape", None) for leaf in tf.nest.flatten(batch) if leaf is not None]
    sizes = [shape[0] for shape in shapes if shape is not None and shape.rank]
    return sizes[0] if sizes else None


def batch_fraction_of(batch: Any) -> tf.Tensor:
    """Our rows over all rows, where only the replicas themselves can count them."""
    rows = tf.cast(tf.shape(tf.nest.flatten(batch)[0])[0], tf.float32)
    return tf.math.divide_no_nan(rows, all_reduce_sum(rows))


def all_reduce_packed(tensors: list[tf.Tensor]) -> list[tf.Tensor]:
    """Sums many small tensors over all replicas in one message (two, where some are integers).

    Args:
        tensors: numbers of any shape, the same shapes and dtypes on every replica.

    Returns:
        The sums, in order, each in its tensor's own dtype. They are sent as float32 and int64
        (int32 on a TPU).
    """
    sums: dict[int, tf.Tensor] = {}
    widest = getattr(tf.distribute.get_strategy(), "integer", tf.int64)
    for transport, integer in ((tf.float32, False), (widest, True)):
        chosen = [i for i, t in enumerate(tensors) if t.dtype.is_integer == integer]
        if not chosen:
            continue
        flat = [tf.reshape(tf.cast(tensors[i], transport), [-1]) for i in chosen]
        total = all_reduce_sum(tf.concat(flat, axis=0))
        parts = tf.split(total, [tf.size(t) for t in flat])
        for i, part in zip(chosen, parts, strict=True):
            whole = tf.reshape(part, tf.shape(tensors[i]))
            sums[i] = tf.cast(tf.ensure_shape(whole, tensors[i].shape), tensors[i].dtype)
    return [sums[i] for i in range(len(tensors))]


def transport_dtype(dtype: tf.DType) -> tf.DType:
    """The dtype in which tensors of `dtype` can be sent between workers without loss.

    TensorFlow's collectives support float16, float32, float64, int32 and int64.

    >>> transport_dtype(tf.bfloat16)
    tf.float32
    """
    if dtype == tf.bfloat16:
        return tf.float32
    if dtype.is_bool or (dtype.is_integer and dtype.size < 4):
        return tf.int32
    if dtype in (tf.uint32, tf.uint64):
        return tf.int64
    return dtype
