"""State of a custom layer or metric: the value of one device on every replica.

A replica's layer sees its own rows. Its update of a counter, a running maximum or a queue is
combined right after its call, by the aggregation that a probe has found (`state_aggregation.py`).
Where none matches, such as for a queue of the newest rows, the layer is called with the rows of all
replicas, on each of them, and each takes its own rows of the result.

Keras's own layers and metrics need none of this: moving statistics are averaged at the end of a
step (`non_trainable.py`), and metrics are sums (`logs.py`).
"""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tfaccel.distribute import _private, row_gather, step
from tfaccel.distribute.eager_probe import concrete_shape, probe
from tfaccel.distribute.mixins import mix_in
from tfaccel.distribute.non_trainable import is_statistic
from tfaccel.distribute.state_aggregation import (
    AGGREGATIONS,
    IDENTICAL,
    SUM,
    WEIGHTED_MEAN,
    aggregate,
    matching_aggregations,
    preferred,
)
from tfaccel.distribute.step import StepContext, all_reduce_packed

_PROBE_ROWS = ((3, 2), (24, 16))  # rows of a probe's parts; of one that few rows are not enough for
_probed: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()
_warned: set[str] = set()


class ReplicaLocalAssign:
    """Mixin for a variable that TensorFlow averages whenever a replica assigns to it.

    In a Keras step a replica assigns only to its own copy: how it is combined depends on what it is
    (a counter of rows is not a mean), and on how many rows each replica has.
    """

    @property
    def aggregation(self) -> tf.VariableAggregation:
        """TensorFlow's aggregation when a replica assigns."""
        if step.current() is not None or step.on_one_device():
            return tf.VariableAggregation.NONE
        return super().aggregation  # type: ignore[misc]


class StatefulLayer:
    """Mixin for a custom layer with a state."""

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer; its state is then that of the global batch."""
        return _call_and_aggregate(self, super().call, args, kwargs)  # type: ignore[misc]


class StatefulMetric:
    """Mixin for a custom metric."""

    def update_state(self, *args: Any, **kwargs: Any) -> Any:
        """Updates the metric; a state that is not a sum is then that of the global batch."""
        return _call_and_aggregate(self, super().update_state, args, kwargs)  # type: ignore[misc]


def aggregate_states(model: keras.Model) -> None:
    """Makes the user's own layers and metrics in `model` keep one device's state."""
    for layer in _private.layers_of(model):
        if _is_custom(layer) and _states(layer):
            mix_in(layer, StatefulLayer)
    for metric in _each_metric(model.metrics):
        if _is_custom(metric) and _states(metric):
            mix_in(metric, StatefulMetric)


def keeps_states(model: keras.Model) -> bool:
    """Whether a layer of the user's own in `model` keeps a state."""
    return any(isinstance(layer, StatefulLayer) for layer in _private.layers_of(model))


def _each_metric(metrics: Sequence[Any]) -> list[keras.metrics.Metric]:
    """Metrics, including nested ones."""
    inner = [m for metric in metrics for m in _private.metrics_in(metric)]
    return [*metrics, *(_each_metric(inner) if inner else ())]


def _is_custom(owner: Any) -> bool:
    """Whether the class is neither Keras's nor one of its companions', which keep only averages."""
    module = str(owner.__class__.__module__)
    return module.split(".")[0] not in ("keras", "keras_hub", "hgq", "tfaccel")


def _states(owner: Any) -> list[Any]:
    """The `keras.Variable`s and `tf.Variable`s that `owner` itself keeps."""
    return [*_private.own_states(owner), *_plain_variables(owner)]


def _states_inside(owner: Any) -> list[Any]:
    """Those of `owner` and of metrics nested in a metric, which its call changes too."""
    if not isinstance(owner, keras.metrics.Metric):
        return _states(owner)
    return [state for metric in _each_metric([owner]) for state in _states(metric)]


def _plain_variables(owner: Any) -> list[tf.Variable]:
    variables: dict[int, tf.Variable] = {}
    for value in vars(owner).values():
        several = value.values() if isinstance(value, dict) else value
        values = several if isinstance(value, (list, tuple, dict)) else [value]
        variables |= {id(v): v for v in values if isinstance(v, tf.Variable)}
    return list(variables.values())


def _call_and_aggregate(owner: Any, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    ctx = step.current()
    if ctx is None or ctx.independent or not row_gather.has_other_replicas():
        return function(*args, **kwargs)
    if ctx.has_global_batch:
        return _call_with_global_batch(owner, function, args, kwargs, ctx)
    rules = _aggregations(owner, args, kwargs, ctx)
    if rules is None:
        return function(*args, **kwargs)
    states = _states(owner)
    if any(rule is None for rule in rules):
        return _call_with_gathered_rows(owner, function, args, kwargs, ctx)
    metric = isinstance(owner, keras.metrics.Metric)
    pairs = [(_private.tf_variable(v), rule or "") for v, rule in zip(states, rules, strict=True)]
    chosen = [
        (v, rule or SUM)
        for v, rule in pairs
        if not (
            _is_reduced_later(rule, metric) if _is_sum(v) else _is_correct(v, rule, ctx, metric)
        )
    ]
    variables = [v for v, _ in chosen]
    before = _load(variables)
    result = function(*args, **kwargs)
    if variables:
        after = [tf.convert_to_tensor(v) for v in variables]
        _store(variables, aggregate([rule for _, rule in chosen], before, after, ctx), ctx)
    ctx.aggregated.update(id(v) for v, rule in pairs if rule == IDENTICAL)
    return result


def _call_with_global_batch(
    owner: Any, function: Callable[..., Any], args: Any, kwargs: Any, ctx: StepContext
) -> Any:
    """Calls where every replica has all rows of a batch: each computes one device's state."""
    variables = [_private.tf_variable(v) for v in _states_inside(owner)]
    _load(variables)
    result = function(*args, **kwargs)
    _store(variables, [tf.convert_to_tensor(v) for v in variables], ctx)
    return result


def _is_reduced_later(rule: str, metric: bool) -> bool:
    """Whether a state can stay a sum over replicas: it is not read within a step."""
    return metric and rule in ("", SUM)


def _is_correct(variable: Any, rule: str, ctx: StepContext, metric: bool) -> bool:
    """Whether a state is one device's, now or at the end of the step (`non_trainable.py`)."""
    averaged = ctx.averages_statistics and not metric and is_statistic(variable)
    return rule in ("", IDENTICAL) or (rule == WEIGHTED_MEAN and averaged)


def _is_sum(variable: Any) -> bool:
    """Whether the value is the sum over replicas."""
    on_read = variable.synchronization == tf.VariableSynchronization.ON_READ
    return bool(on_read and variable.aggregation == tf.VariableAggregation.SUM)


def _load(variables: Sequence[Any]) -> list[tf.Tensor]:
    """The values of one device, which the replicas' copies then hold too."""
    sums = [v for v in variables if _is_sum(v)]
    if sums:
        totals = all_reduce_packed([tf.convert_to_tensor(v) for v in sums])
        for variable, total in zip(sums, totals, strict=True):
            variable.assign(total)
    return [tf.identity(tf.convert_to_tensor(v)) for v in variables]


def _store(variables: Sequence[Any], values: Sequence[tf.Tensor], ctx: StepContext) -> None:
    """Sets `values`, the same on every replica, as one device's."""
    for variable, value in zip(variables, values, strict=True):
        if _is_sum(variable):  # the first replica holds all of it
            first = tf.equal(row_gather.block_number(), 0)
            value = tf.where(first, value, tf.zeros_like(value))
        variable.assign(value)
        ctx.aggregated.add(id(variable))


def _call_with_gathered_rows(
    owner: Any, function: Callable[..., Any], args: Any, kwargs: Any, ctx: StepContext
) -> Any:
    """Calls with the rows of all replicas, and returns this replica's rows of the result."""
    variables = [_private.tf_variable(v) for v in _states_inside(owner)]
    flat = keras.tree.flatten((args, kwargs))
    row_arguments = [i for i, v in enumerate(flat) if _has_local_rows(v, ctx)]
    _warn(owner, variables)
    block = row_gather.local_block(flat[row_arguments[0]], ctx)
    whole = row_gather.gather_rows([flat[i] for i in row_arguments], block, ctx, shared=False)
    for i, value in zip(row_arguments, whole, strict=True):
        mask = _private.keras_mask(flat[i])
        if mask is not None:
            _private.set_keras_mask(value, row_gather.gather_rows(mask, block, ctx))
        flat[i] = value
    args, kwargs = keras.tree.pack_sequence_as((args, kwargs), flat)
    before = _load(variables)
    with step.entered(
        dataclasses.replace(ctx, independent=True, has_empty_replicas=False, real=None)
    ):
        result = function(*args, **kwargs)
    after = [tf.convert_to_tensor(v) for v in variables]
    all_rows = dataclasses.replace(ctx, batch_fraction=tf.ones_like(ctx.batch_fraction))
    _store(variables, aggregate([IDENTICAL] * len(variables), before, after, all_rows), ctx)
    return row_gather.local_rows(result, block) if result is not None else None


def _warn(owner: Any, variables: Sequence[Any]) -> None:
    name = str(owner.name)
    if name not in _warned:
        _warned.add(name)
        logging.warning(
            "tfaccel: %s %r keeps a state (%s) that cannot be combined across replicas: each "
            "replica calls it with the rows of all, and its inputs are communicated.",
            "metric" if isinstance(owner, keras.metrics.Metric) else "layer",
            name,
            ", ".join(str(v.name) for v in variables),
        )


def _has_local_rows(value: Any, ctx: StepContext) -> bool:
    """Whether the first dimension of an argument is that of this replica's rows."""
    if not isinstance(value, tf.Tensor) or not value.shape.rank:
        return False
    return value.shape[0] is None or value.shape[0] == ctx.rows


def _aggregations(owner: Any, args: Any, kwargs: Any, ctx: StepContext) -> list[str | None] | None:
    """The aggregation of each state of `owner`, from a probe with such arguments.

    Returns:
        For each state a rule, ``""`` where nothing changed it, or None where no rule matches; and
        None for all of them where no probe is possible.
    """
    flat = keras.tree.flatten((args, kwargs))
    rows = [_has_local_rows(v, ctx) for v in flat]
    key = tuple(
        (tuple(v.shape[1:] if is_rows else v.shape), v.dtype.name, is_rows)
        if isinstance(v, tf.Tensor) and v.shape.rank is not None
        else repr(v)
        for v, is_rows in zip(flat, rows, strict=True)
    )
    known = _probed.setdefault(owner, {})
    if key not in known:
        possible = any(rows) and all(
            v.shape.rank is not None for v in flat if isinstance(v, tf.Tensor)
        )
        packed = (args, kwargs)
        known[key] = None
        for parts in _PROBE_ROWS if possible else ():
            seen = probe(functools.partial(_probe, owner, packed, rows, parts))
            known[key] = seen.value
            if seen.error is None:
                break
    aggregations: list[str | None] | None = known[key]
    return aggregations


def _probe(
    owner: Any, packed: Any, rows: list[bool], row_counts: tuple[int, int]
) -> list[str | None]:
    """Calls `owner` on random rows, in parts and as a whole, from the same states."""
    states = _states(owner)
    values = [_local_value(v) for v in states]
    candidates = [set(AGGREGATIONS) for _ in states]
    changed = [False] * len(states)
    first = range(row_counts[0])
    everything = range(sum(row_counts))
    last = everything[row_counts[0] :]
    fractions = [part / sum(row_counts) for part in row_counts]
    rng = np.random.default_rng(0)
    independent = True  # what it returns for a row does not depend on other rows
    for kind in ("unit", "normal", "unit"):
        drawn = _random_arguments(packed, rows, sum(row_counts), kind, rng)
        calls, results = [], []
        for chosen in (first, last, everything, everything):
            some = [
                tf.gather(v, list(chosen)) if is_rows else v
                for v, is_rows in zip(drawn, rows, strict=True)
            ]
            arguments = keras.tree.pack_sequence_as(packed, some)
            after, result = _state_after_call(owner, states, values, arguments)
            calls.append(after)
            results.append(result)
        independent = independent and _is_per_example(results)
        for i, old in enumerate(values):
            parts, whole = [calls[0][i], calls[1][i]], calls[2][i]
            if not np.isfinite(np.asarray(whole, np.float64)).all():
                continue
            changed[i] |= any(not np.array_equal(old, new) for new in (*parts, whole))
            candidates[i] &= matching_aggregations(old, parts, whole, fractions)
        values = calls[2]
    if not independent and any(changed):
        return [None] * len(states)
    return [
        preferred(found) if moved else "" for found, moved in zip(candidates, changed, strict=True)
    ]


def _random_arguments(
    packed: Any, rows: list[bool], number: int, kind: str, rng: np.random.Generator
) -> list[Any]:
    """The arguments, flattened, with random numbers in place of tensors."""
    result: list[Any] = []
    for value, is_rows in zip(keras.tree.flatten(packed), rows, strict=True):
        if not isinstance(value, tf.Tensor):
            result.append(value)
            continue
        shape = (
            concrete_shape(value.shape, number) if is_rows else [int(s or 5) for s in value.shape]
        )
        array: Any
        if value.dtype.is_floating:
            array = rng.normal(size=shape) if kind == "normal" else rng.uniform(0.05, 0.95, shape)
        else:
            array = rng.integers(0, 2, shape)
        is_string = value.dtype == tf.string
        result.append(tf.constant(array.astype(str)) if is_string else tf.cast(array, value.dtype))
    return result


def _is_per_example(results: list[list[np.ndarray]]) -> bool:
    """Whether the results for two parts together equal the result for the whole.

    Args:
        results: of the first part, the last, the whole and the whole again, which shows whether
            `owner` draws random numbers: then the probe is inconclusive.
    """
    return all(
        not np.allclose(whole, again, equal_nan=True)
        or (
            len(first) + len(last) == len(whole)
            and np.allclose(np.concatenate([first, last]), whole, 1e-4, 1e-5, equal_nan=True)
        )
        for first, last, whole, again in zip(*results, strict=True)
    )


def _state_after_call(owner: Any, states: list[Any], values: list[Any], arguments: Any) -> Any:
    """The states after a call of `owner`, which are restored afterwards.

    Returns:
        The states, and each array of rows that the call returned.
    """
    args, kwargs = arguments
    mapped = [(v, x) for v, x in zip(states, values, strict=True) if _is_keras_variable(v)]
    plain = [(v, x) for v, x in zip(states, values, strict=True) if not _is_keras_variable(v)]
    kept = [[copy.numpy() for copy in _copies(v)] for v, _ in plain]
    try:
        for variable, value in plain:
            _assign(variable, [value] * len(_copies(variable)))
        with keras.StatelessScope(state_mapping=mapped, collect_losses=False) as scope:
            method = owner.update_state if isinstance(owner, keras.metrics.Metric) else owner
            result = keras.tree.flatten(method(*args, **kwargs))
            arrays = [v.numpy() for v in result if isinstance(v, tf.Tensor) and v.shape.rank]
            after = [
                scope.get_current_value(v).numpy()
                if _is_keras_variable(v)
                else _copies(v)[0].numpy()
                for v in states
            ]
        return after, arrays
    finally:
        for (variable, _), old in zip(plain, kept, strict=True):
            _assign(variable, old)


def _is_keras_variable(variable: Any) -> bool:
    return isinstance(variable, keras.Variable)


def _copies(variable: Any) -> Sequence[Any]:
    """The copies of a variable in this process."""
    distributed = _private.tf_variable(variable)
    return list(getattr(distributed, "values", None) or [distributed])


def _assign(variable: Any, values: Sequence[Any]) -> None:
    for copy, value in zip(_copies(variable), values, strict=True):
        copy.assign(value)


def _local_value(variable: Any) -> Any:
    """The value of one device, from this process only: other workers hold the same."""
    copies = [copy.numpy() for copy in _copies(variable)]
    if not _is_sum(_private.tf_variable(variable)):
        return copies[0]
    return np.sum(copies, axis=0).astype(copies[0].dtype)
