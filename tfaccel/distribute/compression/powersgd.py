"""PowerSGD: gradient matrices are sent as products of two thin ones.

Vogels, Karimireddy and Jaggi, "PowerSGD: Practical Low-Rank Gradient Compression for Distributed
Optimization", 2019, https://arxiv.org/abs/1905.13727 (algorithms 1 and 2).
"""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from tfaccel.distribute import step
from tfaccel.errors import StrategyError


@dataclass(frozen=True)
class _Memory:
    """A replica's state for one gradient, seen as `n` rows of `m`.

    Attributes:
        error: `(n, m)`, the unsent remainder; each replica's part of a sum, the only thing that
            what is sent depends on.
        q: `(m, rank)`, the result of the last power iteration; the same on every replica.
    """

    error: tf.Variable
    q: tf.Variable


class PowerSGD:
    """Sends `rank * (n + m)` numbers for a gradient of `n * m`, and keeps the error for later.

    The error of a step is added to the next step's gradient (error feedback), so nothing is lost
    permanently; the weights are not those of one device. Vectors, sparse gradients and matrices for
    which it would not save half are sent unchanged. The state is only saved in the files of
    `tfaccel.checkpoint.resume`.

    Args:
        rank: of the approximation.
    """

    def __init__(self, rank: int = 4) -> None:
        self.rank = rank
        self._kept: weakref.WeakKeyDictionary[Any, list[_Memory | None]] = (
            weakref.WeakKeyDictionary()
        )

    @property
    def variables(self) -> list[tf.Variable]:
        """The state, of all optimizers in the order in which they were prepared."""
        kept = [one for memory in self._kept.values() for one in memory if one is not None]
        return [variable for one in kept for variable in (one.error, one.q)]

    def prepare(self, owner: Any, variables: list[Any], strategy: Any) -> None:
        """Creates the state for an optimizer; in a cross-replica context.

        Args:
            owner: the optimizer.
            variables: those that it trains, in the order of the gradients to come.
            strategy: whose replicas will call `sum`.
        """
        if owner not in self._kept:
            with tf.init_scope(), strategy.scope():
                memories = [self._memory(i, tuple(v.shape)) for i, v in enumerate(variables)]
            self._kept[owner] = memories

    def sum(self, owner: Any, grads: list[Any]) -> list[Any]:
        """Sums gradients over replicas."""
        if owner not in self._kept:
            raise StrategyError(
                "tfaccel: gradient_compression='powersgd' was requested and optimizer "
                f"{owner.name!r} is not one that a model was compiled with; expected one optimizer "
                "per model; use gradient_compression='bfloat16'."
            )
        if len(grads) != len(self._kept[owner]):
            raise StrategyError(
                f"tfaccel: optimizer {owner.name!r} was given {len(grads)} gradients under "
                "gradient_compression='powersgd'; expected one for each of the "
                f"{len(self._kept[owner])} variables that the model trains (None for one without); "
                "use gradient_compression='bfloat16'."
            )
        present = {i: g for i, g in enumerate(grads) if g is not None}
        memory = {
            i: kept
            for i, kept in enumerate(self._kept[owner])
            if kept is not None and i in present and not isinstance(present[i], tf.IndexedSlices)
        }
        whole = {i: g for i, g in present.items() if i not in memory}
        matrices = {
            i: tf.reshape(tf.cast(grads[i], tf.float32), kept.error.shape) + kept.error
            for i, kept in memory.items()
        }
        p, sums = self._first_message({i: m @ memory[i].q for i, m in matrices.items()}, whole)
        # After an overflow the state is dropped, and the LossScaleOptimizer detects it.
        finite = {i: tf.reduce_all(tf.math.is_finite(total)) for i, total in p.items()}
        # The same input on every replica, so the results are bit-identical.
        p = {i: tf.linalg.qr(_where(finite[i], total)).q for i, total in p.items()}
        matrices = {i: _where(finite[i], m) for i, m in matrices.items()}
        q = {i: tf.matmul(m, p[i], transpose_a=True) for i, m in matrices.items()}
        totals = dict(zip(q, step.all_reduce_packed(list(q.values())), strict=True)) if q else {}
        for i, kept in memory.items():
            kept.error.assign(matrices[i] - tf.matmul(p[i], q[i], transpose_b=True))
            kept.q.assign(tf.where(finite[i], totals[i], kept.q))
            total = tf.matmul(p[i], totals[i], transpose_b=True)
            total = tf.where(finite[i], total, tf.fill(total.shape, math.nan))
            sums[i] = tf.cast(tf.reshape(total, grads[i].shape), grads[i].dtype)
        return [sums.get(i) for i in range(len(grads))]

    def _first_message(
        self, p: dict[int, tf.Tensor], whole: dict[int, Any]
    ) -> tuple[dict[int, tf.Tensor], dict[int, Any]]:
        """Sums the thin matrices, and uncompressed gradients, over replicas."""
        sparse = {i: g for i, g in whole.items() if isinstance(g, tf.IndexedSlices)}
        dense = {i: g for i, g in whole.items() if i not in sparse}
        packed = step.all_reduce_packed([*p.values(), *dense.values()])
        sums = dict(zip(dense, packed[len(p) :], strict=True))
        if sparse:
            sums |= dict(zip(sparse, step.all_reduce_sum(list(sparse.values())), strict=True))
        return dict(zip(p, packed[: len(p)], strict=True)), sums

    def _memory(self, index: int, shape: tuple[int, ...]) -> _Memory | None:
        """The state for a gradient, or None for one that is sent uncompressed."""
        if len(shape) < 2:
            return None
        n, m = math.prod(shape[:-1]), shape[-1]
        if 2 * self.rank * (n + m) > n * m:
            return None
        start = tf.random.stateless_normal([m, self.rank], seed=[index, 0])
        error = tf.Variable(
            tf.zeros([n, m]),
            trainable=False,
            name="powersgd_error",
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.SUM,
        )
        return _Memory(error, tf.Variable(start, trainable=False, name="powersgd_q"))


def _where(condition: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    return tf.where(condition, value, tf.zeros_like(value))
