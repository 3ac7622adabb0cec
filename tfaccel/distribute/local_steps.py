"""Local SGD: every replica trains independently for some steps, then they are averaged.

With `local_steps=H` a replica updates its own copy of the model with the gradient of its own rows,
as an independent worker would; after every H steps all copies are replaced by their mean (Stich
2018, https://arxiv.org/abs/1805.09767; Lin et al. 2018, https://arxiv.org/abs/1808.07217).
Gradients are never sent: the parameters are, once in H steps.

The numbers are no longer those of one device, for any H above 1.

* A step uses the gradient at a replica's own parameters, not at their mean; between averagings the
  copies drift apart, the more so the larger H and the learning rate.
* A replica's gradient is the mean over *its* rows, and every replica counts the same in the
  average: rows of a smaller fraction of the rows (a partial batch) weigh more. A replica without
  any rows takes a step with a gradient of zero.
* Clipping, overflow tests and loss scales use a replica's own gradient.
* With the parameters, the optimizer's own variables (momenta, second moments, moving averages,
  loss scale) are averaged, as Yu et al. do for momentum (https://arxiv.org/abs/1905.03817). Lin et
  al. leave them local, which sends less; but then a checkpoint could not hold a single state. After
  an averaging all replicas are bit-identical.

Moving statistics, metrics and logs still go through one small message in every step. The copies
are also averaged at the end of every epoch and wherever else they may be read (`sync_points.py`),
which resets the count of H steps.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfaccel.distribute import step
from tfaccel.distribute.mixins import mix_in
from tfaccel.distribute.optimizer import (
    ReduceFirst,
    leaves_of,
    optimizers_of,
    parts_of,
    reduce_first,
)


class LocalUpdates(ReduceFirst):
    """Mixin for a Keras optimizer: applies its replica's own gradients, unreduced."""

    def global_batch_gradients(self, grads: list[Any], variables: list[Any]) -> list[Any]:
        """The gradients of our rows; in a custom training loop their sum over replicas."""
        ctx = step.current()
        if ctx is None or step.is_checking():
            return super().global_batch_gradients(grads, variables)
        return [ctx.zero_if_empty(g) for g in grads]


def use_local_updates(
    optimizer: keras.optimizers.Optimizer, strategy: tf.distribute.Strategy
) -> None:
    """Makes `optimizer` apply each replica's own gradients in a step of `fit`.

    Args:
        optimizer: any Keras optimizer, also a LossScaleOptimizer around another.
        strategy: the strategy whose replicas call it.
    """
    for part in parts_of(optimizer):
        use_local_updates(part, strategy)
    mix_in(optimizer, LocalUpdates)
    reduce_first(optimizer, strategy)


class ModelAveraging:
    """Averages the replicas of one model, every few steps and on request.

    Args:
        model: the model; not kept alive.
        strategy: the strategy it trains under.
        steps: how many steps each replica takes between averages.

    Attributes:
        steps_alone: a variable: how many it has taken since the last.
    """

    def __init__(self, model: keras.Model, strategy: Any, steps: int) -> None:
        self._model = weakref.ref(model)
        self._strategy = strategy
        self._steps = steps
        self._synchronize: tuple[list[int], Callable[[], None]] = ([], self._average)
        with tf.init_scope(), strategy.scope():
            # The same on all replicas, whatever their loss scales skip.
            self.steps_alone = tf.Variable(0, trainable=False, dtype=tf.int64, name="steps_alone")

    def after_step(self) -> None:
        """Ends a step of training; call it in a replica."""
        self.steps_alone.assign_add(1)
        tf.cond(self.steps_alone >= self._steps, self._average, lambda: None)

    def synchronize(self) -> None:
        """Averages now, if any step has been taken since the last; every worker must call."""
        if int(self.steps_alone.numpy()) == 0:
            return
        ids = [id(v) for v in self._variables()]
        if ids != self._synchronize[0]:  # the first time, or recompiled
            self._synchronize = ids, tf.function(lambda: self._strategy.run(self._average))
        self._synchronize[1]()

    def _average(self) -> None:
        variables = self._variables()
        numbers = [v for v in variables if v.dtype.is_floating]
        counts = [v for v in variables if v.dtype.is_integer]
        replicas = self._strategy.placement.replicas
        sums = step.all_reduce_sum([tf.cast(v, step.transport_dtype(v.dtype)) for v in numbers])
        for variable, total in zip(numbers, sums, strict=True):
            variable.assign(tf.cast(total / replicas, variable.dtype))
        sums = step.all_reduce_packed([tf.convert_to_tensor(v) for v in counts])
        for variable, total in zip(counts, sums, strict=True):
            variable.assign(total // replicas)
        self.steps_alone.assign(0)

    def _variables(self) -> list[Any]:
        model = self._model()
        assert model is not None
        averaged = list(model.trainable_variables)
        for optimizer in optimizers_of(model):
            # The learning rate is the same everywhere, but a mean of three might round.
            rates = [one.learning_rate for one in leaves_of(optimizer)]
            averaged += [v for v in optimizer.variables if not any(v is rate for rate in rates)]
        return [v.value for v in averaged]
