"""Ends a Keras step: merges the logs of its replicas into those of the global batch.

Keras takes the mean over replicas of each metric's result on its own rows, and reduces each log
separately; a mean of AUCs is not an AUC, and every message between workers has a cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfaccel.distribute import reduction_clock
from tfaccel.distribute.non_trainable import StatisticsAverager
from tfaccel.distribute.step import StepContext, all_reduce_packed


def merge_logs(
    model: keras.Model, logs: Any, step: StepContext, averaged: StatisticsAverager
) -> Any:
    """Ends a step: one message combines statistics, metrics and logs of all replicas.

    A log that is the result of a metric, as in Keras's own steps, is recomputed from the metric
    states of all replicas. Any other is averaged by rows.

    Args:
        model: the model whose `train_step` or `test_step` returned `logs`.
        logs: what it returned, a nest of numbers.
        step: this replica's part of the step.
        averaged: the statistics to combine (may be empty).

    Returns:
        `logs` for the global batch, the same on every replica.
    """
    changes = averaged.changes(step)
    states = _metric_states(model, step)
    local_states = [tf.convert_to_tensor(v.value) for v in states]
    if states and _is_keras_step(model):
        summed = _sum(model, [*changes, *local_states])
        averaged.assign(summed[: len(changes)])
        return _results(model, states, summed[len(changes) :])

    flat = [(path, tf.convert_to_tensor(v)) for path, v in leaves(logs)]
    weighted = [
        step.contribution(tf.cast(v, tf.float32), step.reductions.of("logs", name_of(path)))
        for path, v in flat
    ]
    local = dict(leaves(_results(model, states, local_states))) if states else {}
    is_result = [
        tf.cast(_is_same(v, local[path[-1:]]), tf.float32) if path[-1:] in local else tf.zeros([])
        for path, v in flat
    ]
    sent = [*changes, *local_states, *weighted, *is_result, tf.ones([])]
    sums = iter(_sum(model, sent))
    averaged.assign([next(sums) for _ in changes])
    whole = (
        dict(leaves(_results(model, states, [next(sums) for _ in local_states]))) if states else {}
    )
    means = [next(sums) for _ in flat]
    agreed = [next(sums) for _ in flat]
    replicas = next(sums)
    together = [
        tf.where(agree >= replicas, tf.cast(whole[path[-1:]], mean.dtype), mean)
        if path[-1:] in whole and whole[path[-1:]].shape == mean.shape
        else mean
        for (path, _), mean, agree in zip(flat, means, agreed, strict=True)
    ]
    return keras.tree.pack_sequence_as(logs, together)


def _sum(model: keras.Model, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
    """The last reduction of a step, which overlaps with the optimizer's updates."""
    if reduction_clock.current() is None:
        return all_reduce_packed(tensors)
    updated = [v.value.read_value() for v in model.trainable_variables]
    with reduction_clock.waiting(tensors, after=updated) as sums:
        sums += all_reduce_packed(tensors)
    return sums


def mark_merged(log: tf.Tensor) -> tf.Tensor:
    """A merged log, for Keras: `is_merged` distinguishes it from a value to be reduced.

    It stays a plain tensor, since a user's train function may compute with it.
    """
    merged = tf.identity(log)
    merged._tfaccel_merged = True
    return merged


def is_merged(value: Any) -> bool:
    """Whether `value` is a log that `mark_merged` returned, already the same on every replica."""
    return isinstance(value, tf.Tensor) and getattr(value, "_tfaccel_merged", False)


def _results(model: keras.Model, states: list[Any], values: Sequence[tf.Tensor]) -> Any:
    """The results of the metrics of `model` if their states had these values."""
    with keras.StatelessScope(state_mapping=list(zip(states, values, strict=True))):
        return model.get_metrics_result()


def leaves(logs: Any) -> list[tuple[tuple[Any, ...], Any]]:
    """The leaves of a nest with their paths, in the order of `keras.tree`."""
    if isinstance(logs, dict):
        return [(tuple(p), v) for p, v in keras.tree.flatten_with_path(logs)]
    return [((i,), v) for i, v in enumerate(keras.tree.flatten(logs))]


def name_of(path: tuple[Any, ...]) -> str:
    """The name of a log: its keys."""
    return "/".join(str(part) for part in path)


def _is_same(a: tf.Tensor, b: Any) -> tf.Tensor:
    b = tf.convert_to_tensor(b)
    return tf.reduce_all(tf.equal(a, tf.cast(b, a.dtype))) if a.shape == b.shape else False


def _is_keras_step(model: keras.Model) -> bool:
    """Whether the logs are Keras's own, and so all of them metric results."""
    own = ("train_step", "test_step", "compute_metrics")
    return all(getattr(type(model), name) is getattr(keras.Model, name) for name in own)


def _metric_states(model: keras.Model, step: StepContext) -> list[Any]:
    """The metric variables of `model` that are sums over replicas.

    The others are already the same on every replica (`stateful_layers.py`); if one may not be, none
    is returned.
    """
    states = [v for metric in model.metrics for v in metric.variables]
    sums = [v for v in states if v.value.aggregation == tf.VariableAggregation.SUM]
    others = [v for v in states if not any(v is one for one in sums)]
    return sums if all(id(v.value) in step.aggregated for v in others) else []
