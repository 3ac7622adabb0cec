"""Gradients of the global batch, where a step takes them.

Keras's own step passes its gradients directly to the optimizer; a custom `train_step` may clip
them, take their norm, log them, or pass them to another optimizer than the one that scaled the
loss. In either `tf.GradientTape.gradient` itself returns, for variables, the gradient of the global
batch: the target is weighted by the replica's fraction of the rows, and the gradients are summed
over replicas. The rest is the program of one device, and `optimizer.apply` does not reduce again.
Gradients with respect to anything else (inputs, activations: penalties, saliency) stay the
replica's own.

The weight applies to the target rather than the gradients, so that values gathered from other
replicas inside the loss are differentiated correctly: the gradient of a gather sums what flows back
from all replicas, each with its weight.

A target of several elements is differentiated as its sum, on one device too; it has no weight.

An optimizer that needs each replica's own gradients (`accumulation.py`, PowerSGD) gets them
weighted, and sums them itself.

In a loop outside of `Strategy.run`, where a variable has no replica, its gradient is that of the
copy that is read there.

User code creates instances of the public class `tf.GradientTape`, so its method is replaced, once
per process and permanently; outside a Keras step it is TensorFlow's.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from tfaccel.distribute import _private, reduction_clock, sparse, step
from tfaccel.distribute.reduction_rules import SCALED_MEAN, SUM
from tfaccel.distribute.replacements import replaced


@dataclass
class Gradients:
    """The gradients that a replica takes in one step.

    Attributes:
        reduces: whether they are summed over replicas when taken.
        calls: how many gradients with respect to variables have been taken.
    """

    reduces: bool = True
    calls: int = 0


def all_reduce_gradients(grads: list[Any], owner: Any = None) -> list[Any]:
    """The sum over replicas of each gradient; None stays None.

    Args:
        grads: tensors, IndexedSlices or None.
        owner: the optimizer that they are for, where it is known.
    """
    if all(g is None for g in grads):
        return grads
    with reduction_clock.waiting(grads) as summed:
        summed += _sum_over_replicas(grads, owner)
    return summed


def _sum_over_replicas(grads: list[Any], owner: Any) -> list[Any]:
    compression = getattr(tf.distribute.get_strategy(), "gradient_compression", None)
    kept, more, rebuild = sparse.split_sparse(grads)
    if compression is not None:
        return rebuild(compression.sum(owner, kept), step.all_reduce_sum(more) if more else [])
    summed = iter(step.all_reduce_sum([*(g for g in kept if g is not None), *more]))
    return rebuild([None if g is None else next(summed) for g in kept], list(summed))


def install() -> None:
    """Makes `tf.GradientTape.gradient` return the global batch's gradients in such a step."""
    tape: Any = tf.GradientTape
    if hasattr(tape.gradient, "_tfaccel_plain"):
        return
    tape.gradient = _global_batch_gradient(tape.gradient)
    tape.jacobian = _local_derivative(tape.jacobian)
    tape.batch_jacobian = _local_derivative(tape.batch_jacobian)


_thread_state = threading.local()


def plain_gradients() -> contextlib.AbstractContextManager[None]:
    """Leaves gradients to TensorFlow for a while, in this thread."""
    return replaced(_thread_state, "inert", True)


@contextlib.contextmanager
def recorded() -> Iterator[list[tuple[list[Any], list[Any]]]]:
    """Records this thread's gradients with respect to variables, as TensorFlow computes them."""
    seen: list[tuple[list[Any], list[Any]]] = []
    with replaced(_thread_state, "seen", seen):
        yield seen


def _local_derivative(method: Callable[..., Any]) -> Callable[..., Any]:
    """A Jacobian stays the replica's own: it is computed in a loop over target elements."""

    @functools.wraps(method)
    def own(*args: Any, **kwargs: Any) -> Any:
        with plain_gradients():
            return method(*args, **kwargs)

    return own


def _global_batch_gradient(plain: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def gradient(
        self: tf.GradientTape,
        target: Any,
        sources: Any,
        output_gradients: Any = None,
        unconnected_gradients: Any = tf.UnconnectedGradients.NONE,
    ) -> Any:
        ctx = step.current()
        tracker = ctx.gradients if ctx is not None else None
        flat = tf.nest.flatten(sources)
        if ctx is None:
            sources = tf.nest.pack_sequence_as(sources, [_private.read_here(s) for s in flat])
        chosen = [i for i, source in enumerate(flat) if is_parameter(source)]
        if not chosen or getattr(_thread_state, "inert", False):
            return plain(self, target, sources, output_gradients, unconnected_gradients)
        if ctx is None or tracker is None:
            with plain_gradients():
                taken = plain(self, target, sources, output_gradients, unconnected_gradients)
            if (seen := getattr(_thread_state, "seen", None)) is not None:
                grads = tf.nest.flatten(taken)
                seen.append(([flat[i] for i in chosen], [grads[i] for i in chosen]))
            return taken
        weight = _weight(ctx, ctx.reductions.gradient(tracker.calls))
        targets = tf.nest.flatten(target)
        means = [is_mean(t, ctx.rows, flat[chosen[0]]) for t in targets]
        weighted = _weighted(target, means, output_gradients, weight)
        with plain_gradients():  # recomputation in the backward pass has its own tapes
            grads = tf.nest.flatten(plain(self, target, flat, weighted, unconnected_gradients))
        of_variables = [ctx.zero_if_empty(grads[i]) for i in chosen]
        if tracker.reduces:
            of_variables = all_reduce_gradients(of_variables)
        for i, grad in zip(chosen, of_variables, strict=True):
            grads[i] = grad
        if weighted is not None and weight is not None:
            for i in set(range(len(flat))) - set(chosen):
                grads[i] = _divided(grads[i], weight)
        tracker.calls += 1
        if ctx.recorded is not None:
            ctx.recorded.append(([flat[i] for i in chosen], of_variables))
        return tf.nest.pack_sequence_as(sources, grads)

    gradient._tfaccel_plain = plain  # type: ignore[attr-defined]
    return gradient


def is_custom_step(fn: Any) -> bool:
    """Whether a bound step of a model (train, test or predict) is not entirely Keras's."""
    name = getattr(fn, "__name__", "train_step")
    if getattr(fn, "__func__", None) is not getattr(keras.Model, name, None):
        return True
    own_loss = type(fn.__self__).compute_loss is not keras.Model.compute_loss
    return own_loss and name != "predict_step"


def is_parameter(source: Any) -> bool:
    """Whether a gradient's source is a variable that is equal on all replicas."""
    held = source.value if isinstance(source, keras.Variable) else source
    if not isinstance(held, tf.Variable):
        return False
    return bool(held.synchronization != tf.VariableSynchronization.ON_READ)


def is_mean(target: Any, rows: int | None, owner: Any) -> bool:
    """Whether a target is one number, as a mean loss is, rather than one per row.

    On a replica with one row, in an eager step, both have the same shape. There it is treated as
    per row, unless the same owner had that shape with more rows.

    Args:
        target: of a gradient.
        rows: how many we have, if known.
        owner: the optimizer, or the first variable, whose step it is.
    """
    shape = tf.TensorShape(getattr(target, "shape", None))
    if shape.num_elements() != 1:
        return False
    if shape.rank == 0 or rows is None:
        return True
    key = id(owner), shape.rank
    if rows != 1:
        _never_of_rows.add(key)
    return key in _never_of_rows


_never_of_rows: set[tuple[int, int]] = set()


def _weight(ctx: step.StepContext, reduction: str) -> tf.Tensor | None:
    """The factor of a target; None for 1.

    Replicas that all have the global batch have no weight: gradients that flow from one to another
    (through synchronized statistics) are part of each one's result over all rows. Afterwards only
    the gradients of the first one count.
    """
    if reduction == SUM:
        return None
    fraction = None if ctx.has_global_batch else ctx.batch_fraction
    if reduction != SCALED_MEAN:
        return fraction
    replicas = tf.constant(tf.distribute.get_strategy().placement.replicas, tf.float32)
    return replicas if fraction is None else fraction * replicas


def _weighted(
    target: Any, means: list[bool], output_gradients: Any, weight: tf.Tensor | None
) -> Any:
    """The initial output gradients: those passed, times our weight where a target is a mean."""
    targets = tf.nest.flatten(target)
    means = [m and tf.as_dtype(t.dtype).is_floating for m, t in zip(means, targets, strict=True)]
    if weight is None or not any(means):
        return output_gradients
    given = (
        tf.nest.flatten(output_gradients) if output_gradients is not None else [None] * len(means)
    )
    started = []
    for of, mean, start in zip(targets, means, given, strict=True):
        if mean:
            start = tf.ones_like(of) if start is None else tf.convert_to_tensor(start)
            start = start * tf.cast(weight, start.dtype)
        started.append(start)
    return tf.nest.pack_sequence_as(target, started)


def _divided(grad: Any, weight: tf.Tensor) -> Any:
    if grad is None:
        return None
    if isinstance(grad, tf.IndexedSlices):
        return tf.IndexedSlices(_divided(grad.values, weight), grad.indices, grad.dense_shape)
    return tf.math.divide_no_nan(grad, tf.cast(weight, grad.dtype))
