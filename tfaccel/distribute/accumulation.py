"""Gradient accumulation that communicates once per update.

Under Keras's `gradient_accumulation_steps=K` gradients are reduced in every step and the sums
accumulated: K all-reduces where one is enough, since the order of sums does not matter. With
`gradient_accumulation="local"` each replica accumulates its own, and the all-reduce is in the
branch of the step that updates.

This only changes the order of floating-point additions. Keras clips the accumulated gradients,
which are reduced before that. As in Keras, each of the K batches counts the same, however many rows
it has. Every replica accumulates its gradient times its fraction of the rows times the number of
replicas, so that the mean over replicas is what one device would have accumulated, which is saved
in files.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfaccel.distribute import _private, step
from tfaccel.distribute.mixins import mix_in
from tfaccel.errors import StrategyError


class AccumulatesLocally(_private.BeforeClipping):
    """Mixin for an optimizer adapted by `reduce_first`: reduces only before applying."""

    def apply(self, grads: Any, trainable_variables: Any = None) -> Any:
        """Accumulates our gradients, or applies the mean of all."""
        trainable_variables = trainable_variables and list(trainable_variables)
        odd = [v for v in trainable_variables or () if getattr(v, "overwrite_with_gradient", False)]
        if odd:
            raise StrategyError(
                f"tfaccel: variable {odd[0].path!r} is overwritten with its gradient, which "
                "gradient_accumulation='local' cannot combine; use gradient_accumulation='reduced'."
            )
        return super().apply(grads, trainable_variables)  # type: ignore[misc]

    def reduced(self, grads: list[Any]) -> list[Any]:
        """Our gradients, scaled for accumulation."""
        if step.is_checking():
            summed: list[Any] = super().reduced(grads)  # type: ignore[misc]
            return summed
        return [_times_replicas(g) for g in grads]

    def before_clipping(self, grads: list[Any]) -> list[Any]:
        """The mean over replicas of what each has accumulated."""
        if step.is_checking():
            return grads
        if tf.distribute.in_cross_replica_context() or not tf.distribute.has_strategy():
            return grads  # a custom training loop, on one device
        return [g / _replicas(g.dtype) for g in super().reduced(grads)]  # type: ignore[misc]


class SynchronizesOverflow:
    """Mixin for a LossScaleOptimizer: one replica's overflow is an overflow of all.

    The all-reduce of the inner optimizer is in the branch for finite gradients: replicas that took
    different branches would deadlock.
    """

    def check_finite(self, grads: Any) -> tf.Tensor:
        """Whether the gradients of all replicas are finite."""
        finite = super().check_finite(grads)  # type: ignore[misc]
        return tf.equal(step.all_reduce_sum(tf.cast(~finite, tf.float32)), 0)


def accumulate_locally(optimizer: keras.optimizers.Optimizer) -> None:
    """Makes `optimizer`, which `reduce_first` has adapted, reduce only when it updates.

    One that does not accumulate gradients is unchanged.
    """
    inner = getattr(optimizer, "inner_optimizer", None)
    if inner is not None and inner.gradient_accumulation_steps:
        accumulate_locally(inner)
        mix_in(optimizer, SynchronizesOverflow)
    elif not optimizer.gradient_accumulation_steps:
        return
    mix_in(optimizer, AccumulatesLocally)


def synchronize(optimizer: keras.optimizers.Optimizer, strategy: tf.distribute.Strategy) -> None:
    """Gives every replica the mean of all accumulated gradients, as one device would hold it.

    The next update is unaffected. Call it before the optimizer is saved; every worker must call.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    steps = optimizer.gradient_accumulation_steps
    if not steps or not optimizer.built or not isinstance(optimizer, AccumulatesLocally):
        return
    count, accumulated = _private.accumulation(optimizer)
    if int(count.numpy()) % steps == 0:
        return  # all have been applied
    if optimizer not in _synchronizers:
        _synchronizers[optimizer] = _averaging([v.value for v in accumulated], strategy)
    _synchronizers[optimizer]()


_synchronizers: weakref.WeakKeyDictionary[Any, Callable[[], None]] = weakref.WeakKeyDictionary()


def _averaging(variables: list[Any], strategy: Any) -> Callable[[], None]:
    def replica() -> None:
        sums = step.all_reduce_sum([tf.convert_to_tensor(v) for v in variables])
        for variable, total in zip(variables, sums, strict=True):
            variable.assign(total / _replicas(total.dtype))

    return tf.function(lambda: strategy.run(replica))  # type: ignore[no-any-return]


def _replicas(dtype: Any) -> tf.Tensor:
    # The strategy itself returns 1 inside a Keras step.
    return tf.constant(tf.distribute.get_strategy().placement.replicas, dtype)


def _times_replicas(grad: Any) -> Any:
    if grad is None:
        return None
    if isinstance(grad, tf.IndexedSlices):
        return tf.IndexedSlices(_times_replicas(grad.values), grad.indices, grad.dense_shape)
    return grad * _replicas(grad.dtype)
