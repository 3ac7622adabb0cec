"""Optimizers that see the global batch's gradient, as on one device.

Keras passes a replica's own gradients to the optimizer, which clips them, tests them for overflow
and accumulates them, and only then sums them over the replicas: the norm of a part is not a part of
the norm (https://github.com/tensorflow/tensorflow/issues/33929), and workers that disagree about an
overflow deadlock (https://github.com/keras-team/keras/issues/18666). Here gradients are those of
the global batch before anything reads them, and everything after is the same on every replica. In a
Keras step the tape reduces them (`gradients.py`); those of a custom loop, or not taken by a tape,
are summed here.
"""

from __future__ import annotations

import threading
from typing import Any

import keras
import tensorflow as tf

from tfaccel.distribute import _private, gradients, step
from tfaccel.distribute.mixins import mix_in
from tfaccel.distribute.object_graph import reachable_objects
from tfaccel.distribute.replacements import replaced

_thread_state = threading.local()


class ReduceFirst:
    """Mixin for a Keras optimizer: gradients are reduced before anything reads them."""

    def apply(self, grads: Any, trainable_variables: Any = None) -> Any:
        """Applies the gradient of the global batch."""
        if _is_reduced() or not _in_replica():
            return super().apply(grads, trainable_variables)  # type: ignore[misc]
        if not self.built and trainable_variables is not None:  # type: ignore[has-type]
            # An optimizer unknown to `fit` is built here, outside the graph: a variable created in
            # a graph is created in a `cond`, where collectives are impossible.
            with tf.init_scope():
                self.build(list(trainable_variables))  # type: ignore[attr-defined]
            self.built = True
        grads = self.global_batch_gradients(list(grads), list(trainable_variables or ()))
        for part in parts_of(self):
            reduce_first(part, tf.distribute.get_strategy())
        with replaced(_thread_state, "now", True):
            return super().apply(grads, trainable_variables)  # type: ignore[misc]

    def global_batch_gradients(self, grads: list[Any], variables: list[Any]) -> list[Any]:
        """The global batch's gradients, from those passed by a replica's step."""
        ctx = step.current()
        if ctx is None:
            return self.reduced(grads)
        taken = ctx.gradients
        if taken is not None and taken.calls:  # the tape has weighted them, and may have summed
            return grads if taken.reduces else self.reduced(grads)
        # Taken by `tf.gradients`, or computed manually.
        grads = self.reduced([ctx.weight(g) for g in grads])
        if ctx.recorded is not None:
            ctx.recorded.append((variables, grads))
        return grads

    def reduced(self, grads: list[Any]) -> list[Any]:
        """The sum over replicas of each gradient; None stays None."""
        return gradients.all_reduce_gradients(grads, owner=self)

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:
        # Keras's own reduction, after clipping. `apply` has done it.
        if _is_reduced():
            return list(grads_and_vars)
        return super()._all_reduce_sum_gradients(grads_and_vars)  # type: ignore[misc]

    def _tf_apply(self, grads: Any, trainable_variables: Any = None) -> None:
        # LossScaleOptimizer checks on replica 0 whether gradients are finite. They are now the same
        # on all of them, so each may check its own and no replica needs to wait.
        self._common_apply(grads, trainable_variables)  # type: ignore[attr-defined]


def reduce_first(optimizer: keras.optimizers.Optimizer, strategy: tf.distribute.Strategy) -> None:
    """Makes `optimizer` reduce gradients before it clips, tests or accumulates them.

    Keras's `fit` does this automatically. In a custom training loop under `strategy.run`, call it
    once for each optimizer; gradients are then summed over the replicas, as `tf.distribute` does.

    Args:
        optimizer: any Keras optimizer, also a LossScaleOptimizer around another.
        strategy: the strategy whose replicas call `optimizer.apply`.
    """
    mix_in(optimizer, ReduceFirst)
    _private.adopt_optimizer(optimizer, strategy)
    for part in parts_of(optimizer):
        reduce_first(part, strategy)


def parts_of(optimizer: keras.optimizers.Optimizer) -> list[keras.optimizers.Optimizer]:
    """The optimizers inside a LossScaleOptimizer or a MultiOptimizer; none for others.

    A MultiOptimizer created from a function knows its own only when it is built.
    """
    inner = getattr(optimizer, "inner_optimizer", None)
    several = getattr(keras.optimizers, "MultiOptimizer", None)
    if several is not None and isinstance(optimizer, several):
        return list(optimizer.optimizers)
    return [inner] if inner is not None else []


def leaves_of(optimizer: keras.optimizers.Optimizer) -> list[keras.optimizers.Optimizer]:
    """The innermost optimizers; for a plain one, itself."""
    parts = parts_of(optimizer)
    return [leaf for part in parts for leaf in leaves_of(part)] if parts else [optimizer]


def optimizers_of(model: keras.Model) -> list[keras.optimizers.Optimizer]:
    """The compiled optimizer of `model` and every other one that its steps reach, as in a GAN.

    Those inside another one, such as a LossScaleOptimizer, belong to that one.
    """
    found = reachable_objects(model).optimizers()
    inside = {
        id(held)
        for optimizer in found
        for held in tf.nest.flatten(list(vars(optimizer).values()))
        if isinstance(held, keras.optimizers.Optimizer)
    }
    return [optimizer for optimizer in found if id(optimizer) not in inside]


def _is_reduced() -> bool:
    return getattr(_thread_state, "now", False) or step.on_one_device()


def _in_replica() -> bool:
    context = tf.distribute.get_replica_context()
    return context is not None and tf.distribute.has_strategy()
