"""How the states of replicas are aggregated into the state that one device would have.

A step counter is the same on every replica, a counter of rows is a sum, a moving average a mean
over rows, a running maximum a maximum. The way a layer writes its state does not show which applies
(a moving average and a counter are both an addition). A probe on a few rows, in two parts and as a
whole, does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfaccel.distribute.row_gather import block_number
from tfaccel.distribute.step import StepContext, all_reduce_packed

IDENTICAL, SUM, WEIGHTED_MEAN, MAXIMUM, MINIMUM = (
    "identical",
    "sum",
    "weighted_mean",
    "maximum",
    "minimum",
)
AGGREGATIONS = (IDENTICAL, SUM, WEIGHTED_MEAN, MAXIMUM, MINIMUM)
"""IDENTICAL: every replica computes one device's value. SUM: the sum of changes. WEIGHTED_MEAN:
their mean, weighted by rows. MAXIMUM, MINIMUM: of the values."""


def matching_aggregations(
    before: Any, parts: Sequence[Any], whole: Any, fractions: Sequence[float]
) -> set[str]:
    """The aggregations that turn values after steps on parts of a batch into that of the whole.

    Args:
        before: the value before the step, an array of numbers.
        parts: the values after it, each from `before` with some of the batch's rows.
        whole: one device's value, from `before` with all rows.
        fractions: the part of all rows that each of `parts` saw.

    Returns:
        A subset of `AGGREGATIONS`; all of them where nothing changed, which is inconclusive.

    >>> sorted(matching_aggregations(1.0, [4.0, 3.0], 6.0, [0.6, 0.4]))
    ['sum']
    >>> sorted(matching_aggregations([0.0, 2.0], [[1.0, 2.0], [0.5, 4.0]], [1.0, 4.0], [0.6, 0.4]))
    ['maximum']
    """
    old, reference = np.asarray(before), np.asarray(whole)
    replicated = [np.asarray(part) for part in parts]
    if old.dtype.kind != "f":
        old, reference, *replicated = (a.astype(np.float64) for a in (old, reference, *replicated))
    changes = [part - old for part in replicated]
    aggregates = {
        SUM: old + sum(changes),
        WEIGHTED_MEAN: old
        + sum(c * fraction for c, fraction in zip(changes, fractions, strict=True)),
        MAXIMUM: np.max(replicated, axis=0),
        MINIMUM: np.min(replicated, axis=0),
    }
    close = {rule for rule, value in aggregates.items() if _close(value, reference)}
    return close | {IDENTICAL} if all(_close(part, reference) for part in replicated) else close


def _close(a: Any, b: Any) -> bool:
    scale = float(np.max(np.abs(b), initial=0.0, where=np.isfinite(b)))
    return bool(np.allclose(a, b, rtol=1e-4, atol=1e-5 * scale, equal_nan=True))


def preferred(rules: Iterable[str]) -> str | None:
    """The one to use where several match the observations."""
    matching = set(rules)
    return next((rule for rule in AGGREGATIONS if rule in matching), None)


def aggregate(
    rules: Sequence[str], before: Sequence[tf.Tensor], after: Sequence[tf.Tensor], ctx: StepContext
) -> list[tf.Tensor]:
    """One device's values of states, the same on every replica; one message carries all.

    Args:
        rules: of each state.
        before: their values before the step, the same on every replica.
        after: this replica's after it.
        ctx: this replica's part of the step. The result of a replica without rows has zero weight.
    """
    replicas = tf.distribute.get_strategy().placement.replicas
    block_mask = tf.one_hot(block_number(), replicas, dtype=tf.int32)
    sent = []
    for rule, old, new in zip(rules, before, after, strict=True):
        new = tf.where(ctx.batch_fraction > 0, new, old)
        if rule == SUM:
            sent.append(new - old)
        elif rule == WEIGHTED_MEAN:
            sent.append(ctx.weight(new - old))
        elif rule == IDENTICAL:  # block 0 has rows if any has
            sent.append(new * tf.cast(block_mask[0], new.dtype))
        else:
            shape = [replicas] + [1] * new.shape.rank
            sent.append(
                tf.where(tf.reshape(block_mask == 1, shape), new[None], tf.zeros_like(new)[None])
            )
    result = []
    for rule, old, total in zip(rules, before, all_reduce_packed(sent), strict=True):
        if rule in (SUM, WEIGHTED_MEAN):
            result.append(old + total)
        elif rule == IDENTICAL:
            result.append(total)
        else:
            extreme = tf.reduce_max if rule == MAXIMUM else tf.reduce_min
            result.append(extreme(total, axis=0))
    return result
