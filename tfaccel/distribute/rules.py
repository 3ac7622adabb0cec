"""How what replicas make of a state becomes what one device would have made of it.

A step counter is the same on every replica, a counter of rows is a sum, a moving average a mean
over rows, a running maximum a maximum. How a layer writes its state does not say which (a moving
average and a counter are both an addition). A trial on a few rows, in two parts and as a whole,
does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfaccel.distribute.gathered import block_number
from tfaccel.distribute.step import Step, all_reduce_packed

SAME, SUM, ROWS, MAXIMUM, MINIMUM = "same", "sum", "rows", "maximum", "minimum"
RULES = (SAME, SUM, ROWS, MAXIMUM, MINIMUM)
"""SAME: every replica makes one device's value. SUM: the changes add up. ROWS: their mean, weighted
by rows, does. MAXIMUM, MINIMUM: of the values."""


def matching(before: Any, parts: Sequence[Any], whole: Any, shares: Sequence[float]) -> set[str]:
    """The rules by which values after a step on parts of a batch make that after the whole.

    Args:
        before: the value before the step, an array of numbers.
        parts: the values after it, each from `before` with some of the batch's rows.
        whole: one device's value, from `before` with all rows.
        shares: the part of all rows that each of `parts` saw.

    Returns:
        A subset of `RULES`; all of them where nothing changed, which says nothing.

    >>> sorted(matching(1.0, [4.0, 3.0], 6.0, [0.6, 0.4]))
    ['sum']
    >>> sorted(matching([0.0, 2.0], [[1.0, 2.0], [0.5, 4.0]], [1.0, 4.0], [0.6, 0.4]))
    ['maximum']
    """
    old, one = np.asarray(before), np.asarray(whole)
    made = [np.asarray(part) for part in parts]
    if old.dtype.kind != "f":
        old, one, *made = (a.astype(np.float64) for a in (old, one, *made))
    changes = [part - old for part in made]
    found = {
        SUM: old + sum(changes),
        ROWS: old + sum(c * share for c, share in zip(changes, shares, strict=True)),
        MAXIMUM: np.max(made, axis=0),
        MINIMUM: np.min(made, axis=0),
    }
    close = {rule for rule, value in found.items() if _close(value, one)}
    return close | {SAME} if all(_close(part, one) for part in made) else close


def _close(a: Any, b: Any) -> bool:
    scale = float(np.max(np.abs(b), initial=0.0, where=np.isfinite(b)))
    return bool(np.allclose(a, b, rtol=1e-4, atol=1e-5 * scale, equal_nan=True))


def first_of(rules: Iterable[str]) -> str | None:
    """The one to use where several hold, as far as anybody has seen."""
    held = set(rules)
    return next((rule for rule in RULES if rule in held), None)


def combined(
    rules: Sequence[str], before: Sequence[tf.Tensor], after: Sequence[tf.Tensor], here: Step
) -> list[tf.Tensor]:
    """One device's values of states, the same on every replica; one message carries all.

    Args:
        rules: of each state.
        before: their values before the step, the same on every replica.
        after: ours after it.
        here: our part of the step. What a replica without rows has made counts for nothing.
    """
    replicas = tf.distribute.get_strategy().placement.replicas
    ours = tf.one_hot(block_number(), replicas, dtype=tf.int32)
    sent = []
    for rule, old, new in zip(rules, before, after, strict=True):
        new = tf.where(here.share > 0, new, old)
        if rule == SUM:
            sent.append(new - old)
        elif rule == ROWS:
            sent.append(here.weight(new - old))
        elif rule == SAME:  # block 0 has rows if any has
            sent.append(new * tf.cast(ours[0], new.dtype))
        else:
            shape = [replicas] + [1] * new.shape.rank
            sent.append(tf.where(tf.reshape(ours == 1, shape), new[None], tf.zeros_like(new)[None]))
    result = []
    for rule, old, total in zip(rules, before, all_reduce_packed(sent), strict=True):
        if rule in (SUM, ROWS):
            result.append(old + total)
        elif rule == SAME:
            result.append(total)
        else:
            extreme = tf.reduce_max if rule == MAXIMUM else tf.reduce_min
            result.append(extreme(total, axis=0))
    return result
