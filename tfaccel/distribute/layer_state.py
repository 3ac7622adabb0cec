"""The state of layers in custom training loops, the same on every replica.

`fit` ends each step with an average of the state that replicas update without gradients, such as
the moving means of BatchNormalization. Here a step passed to `strategy.run` ends the same way, and
replicas draw different random numbers in it. Otherwise a saved file would hold the state of the
first replica.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfaccel.distribute import _private
from tfaccel.distribute.batch_sharding import is_absent, row_count
from tfaccel.distribute.non_trainable import StatisticsAverager, replica_seeds, statistics
from tfaccel.distribute.replacements import replaced
from tfaccel.distribute.step import StepContext, all_reduce_packed, all_reduce_sum

_thread_state = threading.local()
_READS = ("ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VariableShape")


def averaged(layers: Sequence[keras.layers.Layer] | None) -> Any:
    """While `strategy.run` runs a custom step that uses `layers`; None for no such step."""
    return replaced(_thread_state, "layers", layers)


class AveragesLayerState:
    """Mixin for a `tf.distribute.StrategyExtended` whose replicas run custom steps."""

    def _call_for_each_replica(self, fn: Any, args: Any, kwargs: Any) -> Any:
        run = super()._call_for_each_replica  # type: ignore[misc]
        layers = getattr(_thread_state, "layers", None)
        # TensorFlow calls again with the Python function of a `tf.function`.
        if layers is None or _private.is_function(fn):
            return run(fn, args, kwargs)
        seeds = self.seeds()  # type: ignore[attr-defined]
        with averaged(None):  # nested calls are part of the step
            return run(_averaging(fn, layers, seeds), args, kwargs)


def _averaging(fn: Callable[..., Any], layers: Sequence[Any], seeds: list[Any]) -> Any:
    variables = [v for layer in layers for v in statistics(layer)]

    def replica(*args: Any, **kwargs: Any) -> Any:
        averager, written = StatisticsAverager(variables), _Written(variables)
        with replica_seeds(seeds):
            result = fn(*args, **kwargs)
        if changed := written.since():
            averager.keep(changed)
            rows = _rows((args, kwargs))
            fraction = tf.math.divide_no_nan(rows, all_reduce_sum(rows))
            ctx = StepContext(fraction, has_empty_replicas=True)
            averager.assign(all_reduce_packed(averager.changes(ctx)))
        return result

    return replica


def _rows(arguments: Any) -> tf.Tensor:
    """A replica's number of rows: that of its first argument with rows."""
    for leaf in tf.nest.flatten(arguments):
        if tf.is_tensor(leaf) and not is_absent(leaf) and leaf.shape.rank != 0:
            return tf.cast(row_count(leaf), tf.float32)
    return tf.ones([])


class _Written:
    """The variables that a part of a graph may write; all of them without a graph."""

    def __init__(self, variables: Sequence[Any]) -> None:
        self._variables = list(variables)
        self._graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
        self._begin = 0 if self._graph is None else len(self._graph.get_operations())

    def since(self) -> list[Any]:
        """The variables that may have been written since this was created."""
        graph = self._graph
        if graph is None:
            return self._variables
        new = graph.get_operations()[self._begin :]
        used = {i.ref() for op in new if op.type not in _READS for i in op.inputs}
        return [v for v in self._variables if graph.capture(v.handle).ref() in used]
