"""Random operations; DTensor lays out only the stateless ones, which take their seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfaccel.distribute._private import OperationProxy
from tfaccel.distribute.model_parallel.rewrites.operation import (
    Operation,
    relayout_dims,
)


def stateless(draw: Callable[..., tf.Tensor]) -> Callable[[Operation], Any]:
    """DTensor lays out stateless random operations: the state moves to a variable."""

    def drawn(op: Operation) -> Any:
        seed = op.strategy.seeds.following(op.attrs["seed"].i, op.attrs["seed2"].i)
        numbers = draw(op, seed)
        return OperationProxy(numbers.op, [numbers], op.inputs, op.attrs)

    return drawn


def normal(op: Operation, seed: Any) -> tf.Tensor:
    """Normal numbers."""
    return tf.random.stateless_normal(op.inputs[0], seed, dtype=op.attrs["dtype"].type)


def truncated_normal(op: Operation, seed: Any) -> tf.Tensor:
    """Normal numbers within two standard deviations."""
    return tf.random.stateless_truncated_normal(op.inputs[0], seed, dtype=op.attrs["dtype"].type)


def uniform(op: Operation, seed: Any) -> tf.Tensor:
    """Numbers between 0 and 1."""
    return tf.random.stateless_uniform(op.inputs[0], seed, dtype=op.attrs["dtype"].type)


def integers(op: Operation, seed: Any) -> tf.Tensor:
    """Integers."""
    shape, least, limit = op.inputs
    return tf.random.stateless_uniform(shape, seed, least, limit, dtype=op.attrs["Tout"].type)


def shuffle(op: Operation, seed: Any) -> tf.Tensor:
    """Shuffled rows."""
    op.replicate(0)
    (value,) = op.inputs
    keys = tf.random.stateless_uniform(tf.shape(value)[:1], seed)
    return tf.gather(value, tf.argsort(relayout_dims(keys, op.mesh)))
