"""Keeps the state that a model updates without gradients the same on every replica.

Keras gives moving statistics no aggregation (https://github.com/keras-team/keras/pull/20703), so
each replica would keep its own and the saved file the first one's. And it gives every replica the
same random state, so all would drop the same units.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfaccel.distribute import object_graph
from tfaccel.distribute.step import StepContext

# Far apart, and odd, so that no two replicas of one seed collide (the golden ratio of 2**32).
_STRIDE = 0x9E3779B9


def statistics(model: keras.layers.Layer) -> list[Any]:
    """The floating variables of `model` that change without a gradient, such as moving means.

    Weights that were frozen later (`layer.trainable = False`) were created trainable and are not
    among them. TensorFlow variables that its steps reach, unknown to Keras, are.
    """
    own = [v.value for v in model.non_trainable_weights if not v.value.trainable]
    raw = object_graph.reachable_objects(model).raw
    return [v for v in [*own, *raw] if is_statistic(v)]


def is_statistic(variable: Any) -> bool:
    """Whether a variable that changes without a gradient is averaged at the end of a step."""
    on_read = variable.synchronization == tf.VariableSynchronization.ON_READ
    return bool(variable.dtype.is_floating and not on_read)


class StatisticsAverager:
    """Combines the statistics of all replicas at the end of a step.

    Each replica's *change* over the step is averaged by rows, so that a statistic that did not
    change stays bit-identical.
    """

    def __init__(self, variables: Sequence[Any]) -> None:
        self._variables = list(variables)
        self._before = [tf.identity(tf.convert_to_tensor(v)) for v in self._variables]

    def keep(self, variables: Sequence[Any]) -> None:
        """Drops statistics that are not among `variables`."""
        kept = {id(variable) for variable in variables}
        pairs = [p for p in zip(self._variables, self._before, strict=True) if id(p[0]) in kept]
        self._variables, self._before = [v for v, _ in pairs], [old for _, old in pairs]

    def changes(self, step: StepContext) -> list[tf.Tensor]:
        """Our part of the change of each statistic."""
        pairs = [
            (variable, old)
            for variable, old in zip(self._variables, self._before, strict=True)
            if id(variable) not in step.aggregated
        ]
        self._variables, self._before = [v for v, _ in pairs], [old for _, old in pairs]
        return [step.weight(tf.convert_to_tensor(v) - old) for v, old in pairs]

    def assign(self, totals: Sequence[tf.Tensor]) -> None:
        """Sets each statistic to what it was plus the change over all replicas."""
        for variable, old, change in zip(self._variables, self._before, totals, strict=True):
            variable.assign(old + change)


class CountedOnce:
    """Metrics in a step that every replica runs over all rows: only the first replica counts.

    Args:
        model: whose metrics get the same rows from every replica.
    """

    def __init__(self, model: keras.Model) -> None:
        states = [v.value for metric in model.metrics for v in metric.variables]
        self._sums = [v for v in states if v.aggregation == tf.VariableAggregation.SUM]
        self._before = [tf.identity(tf.convert_to_tensor(v)) for v in self._sums]

    def assign(self, step: StepContext) -> None:
        """Reverts the counts of a replica without a share."""
        for variable, old in zip(self._sums, self._before, strict=True):
            if id(variable) not in step.aggregated:
                variable.assign(
                    tf.where(step.batch_fraction > 0, tf.convert_to_tensor(variable), old)
                )


@contextlib.contextmanager
def replica_seeds(seeds: Sequence[Any]) -> Iterator[None]:
    """Gives this replica its own random numbers for the duration of a step.

    The stored state stays the same on all replicas (it is offset by the replica's index, used, and
    reset), so saving and loading need no special handling.

    Args:
        seeds: state variables of Keras seed generators, integers of shape `[2]`.
    """
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    offsets = []
    for seed in seeds:
        shift = tf.cast(replica, tf.int64) * _STRIDE % 0x7FFFFFFF
        offsets.append(tf.cast(tf.stack([shift, tf.zeros_like(shift)]), seed.dtype))
    for seed, offset in zip(seeds, offsets, strict=True):
        seed.assign(seed + offset)
    try:
        yield
    finally:
        for seed, offset in zip(seeds, offsets, strict=True):
            seed.assign(seed - offset)
