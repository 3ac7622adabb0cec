"""Optimizers that see the whole batch's gradient, as on one device.

Keras hands a replica's own gradients to the optimizer, which clips them, tests them for overflow
and accumulates them, and only then sums them over the replicas: a norm of a part is not a part of
the norm (https://github.com/tensorflow/tensorflow/issues/33929), and workers that disagree about
an overflow wait for each other forever (https://github.com/keras-team/keras/issues/18666). Here
gradients are summed first. All that follows is then the same on every replica.
"""

from __future__ import annotations

import threading
from typing import Any

import keras
import tensorflow as tf

from tfaccel.distribute import _private, step
from tfaccel.distribute.adapt import adapt
from tfaccel.distribute.reachable import reached

_reduced = threading.local()


class ReduceFirst:
    """Mixin for a Keras optimizer: gradients are reduced before anything looks at them."""

    def scale_loss(self, loss: tf.Tensor) -> tf.Tensor:
        """Weighs the loss by our share of the rows, so that gradients need no pass of their own."""
        loss = super().scale_loss(loss)  # type: ignore[misc]
        here = step.current()
        if here is not None and loss.shape.rank:
            # The gradient of a number for each row is that of their sum.
            loss = tf.reduce_sum(loss)
            if not here.starved:
                here.weighted.add(id(self))
                return loss
            return tf.math.divide_no_nan(loss, tf.cast(here.share, loss.dtype))
        if here is None or here.starved:
            return loss
        here.weighted.add(id(self))
        return here.weight(loss)

    def apply(self, grads: Any, trainable_variables: Any = None) -> Any:
        """Applies the gradient of the whole batch."""
        if getattr(_reduced, "now", False) or not _in_replica():
            return super().apply(grads, trainable_variables)  # type: ignore[misc]
        if not self.built and trainable_variables is not None:  # type: ignore[has-type]
            # An optimizer that `fit` does not know of is built here, out of the graph: a variable
            # made in a graph is made in a `cond`, where no collective can be.
            with tf.init_scope():
                self.build(list(trainable_variables))  # type: ignore[attr-defined]
            self.built = True
        here = step.current()
        grads = list(grads)
        if here is not None and id(self) not in here.weighted:
            grads = [here.weight(g) for g in grads]
        grads = self.reduced(grads)
        _reduced.now = True
        try:
            return super().apply(grads, trainable_variables)  # type: ignore[misc]
        finally:
            _reduced.now = False

    def reduced(self, grads: list[Any]) -> list[Any]:
        """The sum over replicas of each gradient; None stays None."""
        present = [g for g in grads if g is not None]
        wire = getattr(tf.distribute.get_strategy(), "wire", None)
        if not present:
            return grads
        if wire is not None:
            return list(wire.sum(self, grads))
        summed = iter(step.all_reduce_sum(present))
        return [None if g is None else next(summed) for g in grads]

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:
        # Keras's own reduction, after clipping. `apply` has done it.
        if getattr(_reduced, "now", False):
            return list(grads_and_vars)
        return super()._all_reduce_sum_gradients(grads_and_vars)  # type: ignore[misc]

    def _tf_apply(self, grads: Any, trainable_variables: Any = None) -> None:
        # LossScaleOptimizer asks replica 0 whether gradients are finite. They are the same on
        # all of them now, so each may ask its own and no replica needs to wait.
        self._common_apply(grads, trainable_variables)  # type: ignore[attr-defined]


def reduce_first(optimizer: keras.optimizers.Optimizer, strategy: tf.distribute.Strategy) -> None:
    """Makes `optimizer` reduce gradients before it clips, tests or accumulates them.

    Keras's `fit` gets this by itself. In a loop of your own under `strategy.run`, call it once for
    each optimizer; gradients are then summed over the replicas, as `tf.distribute` does.

    Args:
        optimizer: any Keras optimizer, also a LossScaleOptimizer around another.
        strategy: the strategy whose replicas call `optimizer.apply`.
    """
    adapt(optimizer, ReduceFirst)
    _private.adopt_optimizer(optimizer, strategy)
    inner = getattr(optimizer, "inner_optimizer", None)
    if inner is not None:
        reduce_first(inner, strategy)


def optimizers_of(model: keras.Model) -> list[keras.optimizers.Optimizer]:
    """The compiled optimizer of `model` and every other one that its steps reach, as a GAN's do.

    Those inside another one, such as a LossScaleOptimizer, are that one's.
    """
    found = reached(model).optimizers()
    inside = {
        id(held)
        for optimizer in found
        for held in tf.nest.flatten(list(vars(optimizer).values()))
        if isinstance(held, keras.optimizers.Optimizer)
    }
    return [optimizer for optimizer in found if id(optimizer) not in inside]


def _in_replica() -> bool:
    context = tf.distribute.get_replica_context()
    return context is not None and tf.distribute.has_strategy()
