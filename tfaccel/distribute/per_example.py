"""Whether a loss is per example, or of the batch as a whole.

A per-example loss is computed where the row is. One that mines hard triplets, contrasts rows with
each other or returns one number must see all rows of the batch, which must be sent: 4 bytes per
number of `y_true` and `y_pred` and step. Keras's own losses are known; any other is probed on a few
rows, whose neighbours are changed, removed and reordered. The trial is the same on every worker, as
it depends only on shapes; a loss that cannot be probed is treated as one of the batch.
"""

from __future__ import annotations

import itertools
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfaccel.distribute import _private
from tfaccel.distribute.eager_probe import concrete_shape, probe

_BATCH_LOSSES = ("dice", "tversky", "circle")
"""Keras's losses that may use more than a row, depending on `axis`, so they are probed."""

_HALF = 3  # rows of the trial, in each of two halves
_LARGE = 20_000  # numbers in a row above which a trial takes fewer
_probed: weakref.WeakKeyDictionary[Any, dict[Any, bool]] = weakref.WeakKeyDictionary()


def is_per_example(loss: keras.losses.Loss, y_true: Any, y_pred: Any) -> bool:
    """Whether `loss.call` returns one value per row, which depends only on that row.

    Args:
        loss: a Keras loss.
        y_true: a nest of tensors of shape `[rows, ...]`; their values are not read.
        y_pred: the same.
    """
    if loss.__class__.__call__ is not keras.losses.Loss.__call__:
        return False  # it may return anything
    flat = keras.tree.flatten((y_true, y_pred))
    if any(not isinstance(t, tf.Tensor) or t.shape.rank is None for t in flat):
        return _is_keras_loss(loss)  # what cannot be tried cannot be gathered either
    if _is_keras_loss(loss) and keras.tree.flatten(y_pred)[0].shape.rank > 1:
        return True
    key = tuple((tuple(t.shape[1:]), t.shape.rank, t.dtype.name) for t in flat)
    known = _probed.setdefault(loss, {})
    if key not in known:
        specs = keras.tree.map_structure(
            lambda t: tf.TensorSpec(t.shape, t.dtype), (y_true, y_pred)
        )
        known[key] = bool(probe(lambda: _probe(loss, *specs)).value)
    return known[key]


def is_row_mean(metric: Any, function: Callable[..., Any], y_true: Any, y_pred: Any) -> bool:
    """Whether the number that `function` returns for some rows is a mean over them.

    Args:
        metric: whose function it is.
        function: of `y_true` and `y_pred`; returns a scalar.
        y_true: as in `is_per_example`.
        y_pred: the same.
    """
    flat = keras.tree.flatten((y_true, y_pred))
    if any(not isinstance(t, tf.Tensor) or t.shape.rank is None for t in flat):
        return True  # what cannot be tried cannot be gathered either
    key = tuple((tuple(t.shape[1:]), t.shape.rank, t.dtype.name) for t in flat)
    known = _probed.setdefault(metric, {})
    if key not in known:
        specs = keras.tree.map_structure(
            lambda t: tf.TensorSpec(t.shape, t.dtype), (y_true, y_pred)
        )
        known[key] = bool(probe(lambda: _probe_mean(function, *specs)).value)
    return known[key]


def _probe_mean(function: Callable[..., Any], true: Any, pred: Any) -> bool:
    most = 16 if _is_large(true, pred) else None
    call = _traced_call(types.SimpleNamespace(call=function), true, pred, most)
    verdicts = []
    for arguments in _random_inputs(true, pred, most):

        def value(rows: slice, arguments: Any = arguments) -> Any:
            return call(*keras.tree.map_structure(lambda both: both[0][rows], arguments))

        parts = [value(slice(_HALF)), value(slice(_HALF, None)), value(slice(None))]
        if all(part is not None and np.isfinite(part).all() for part in parts):
            first, last, whole = parts
            verdicts.append(np.allclose(whole, (first + last) / 2, rtol=1e-4, atol=1e-6))
    return bool(verdicts) and all(verdicts)


def _is_keras_loss(loss: Any) -> bool:
    """Whether `loss` is a Keras loss known to be per row (for a `y_pred` of two axes)."""
    function, options = _private.wrapped_function(loss)
    made_by = [loss.__class__.__module__, getattr(function, "__module__", None) or "keras."]
    if not all(str(module).startswith("keras.") for module in made_by):
        return False
    own_call = function is None and loss.__class__.call is keras.losses.Loss.call
    by_last_axis = options.get("axis", -1) == -1
    name = getattr(function, "__name__", "")
    return not own_call and by_last_axis and name not in _BATCH_LOSSES


def _probe(loss: Any, true: Any, pred: Any) -> bool:
    for most in (16, None) if _is_large(true, pred) else (None,):
        call = _traced_call(loss, true, pred, most)
        verdicts = [
            v
            for y in _random_inputs(true, pred, most)
            if (v := _rows_are_independent(call, *y)) is not None
        ]
        if verdicts:
            return all(verdicts)
    return False


def _is_large(*specs: Any) -> bool:
    sizes = (np.prod(concrete_shape(s.shape, 1)) for s in keras.tree.flatten(specs))
    return any(size > _LARGE for size in sizes)


def _traced_call(loss: Any, true: Any, pred: Any, most: int | None) -> Callable[..., Any]:
    """`loss.call` on arrays, traced like Keras's steps; None where it fails."""

    def spec(s: tf.TensorSpec) -> tf.TensorSpec:
        return tf.TensorSpec([None, *concrete_shape(s.shape, 1, most)[1:]], s.dtype)

    signature = keras.tree.map_structure(spec, (true, pred))
    function = tf.function(loss.call, autograph=False, input_signature=signature)
    _refuse_effects(function.get_concrete_function().graph.as_graph_def())

    def call(y_true: Any, y_pred: Any) -> Any:
        try:
            values = function(*keras.tree.map_structure(tf.constant, (y_true, y_pred)))
        except (tf.errors.OpError, ValueError, TypeError):
            return None
        return np.asarray(values)

    return call


def _refuse_effects(graph: Any) -> None:
    """Raises when a trial would leave side effects."""
    for node in itertools.chain(graph.node, *(f.node_def for f in graph.library.function)):
        if node.op.startswith(("Assign", "Print", "Resource")) or "PyFunc" in node.op:
            raise ValueError(f"{node.op} is more than a computation")


def _random_inputs(true: Any, pred: Any, most: int | None) -> Iterator[tuple[Any, Any]]:
    """Targets and predictions of different kinds, since it is unknown which a loss expects.

    Each is a nest of arrays of two independent draws, shape `[2, rows, ...]`.
    """
    rng = np.random.default_rng(0)
    kinds: dict[str, Callable[[list[int]], np.ndarray]] = {
        "normal": lambda shape: rng.normal(size=shape),
        "unit": lambda shape: rng.uniform(0.05, 0.95, shape),
        "two classes": lambda shape: rng.integers(0, 2, shape),
        "three classes": lambda shape: rng.integers(0, 3, shape),
        "one hot": lambda shape: np.eye(shape[-1])[rng.integers(0, shape[-1], shape[:-1])],
        "probabilities": lambda shape: rng.dirichlet(np.ones(shape[-1]), shape[:-1]),
    }
    pairs = [
        ("two classes", "normal"),
        ("two classes", "unit"),
        ("three classes", "probabilities"),
        ("normal", "normal"),
        ("unit", "unit"),
        ("one hot", "probabilities"),
    ]
    for of_true, of_pred in pairs:

        def draw(spec: tf.TensorSpec, kind: str) -> np.ndarray:
            shape = [2, *concrete_shape(spec.shape, 2 * _HALF, most)]
            return kinds[kind](shape).astype(spec.dtype.as_numpy_dtype)

        yield (
            keras.tree.map_structure(lambda s, k=of_true: draw(s, k), true),
            keras.tree.map_structure(lambda s, k=of_pred: draw(s, k), pred),
        )


def _rows_are_independent(call: Callable[..., Any], true: Any, pred: Any) -> bool | None:
    """Whether each row's value depends only on that row; None if these arrays are inconclusive."""

    def take(rows: Any, second: Any = ()) -> Any:
        """The loss of these rows of the first draw; those in `second` are from the second."""

        def one(both: np.ndarray) -> Any:
            array = both[0].copy()
            array[list(second)] = both[1][list(second)]
            return np.asarray(array[rows])

        return call(*keras.tree.map_structure(one, (true, pred)))

    everything = list(range(2 * _HALF))
    first, last = everything[:_HALF], everything[_HALF:]
    base = take(everything)
    if base is None:
        return None
    if base.ndim == 0 or base.shape[0] != len(everything):
        return False
    turned = [*last, *first]
    trials = [  # the loss of some rows, and which of its values are of which rows
        (take(everything, last), first, first),
        (take(everything, first), last, last),
        (take(first), range(_HALF), first),
        (take(last), range(_HALF), last),
        (take(turned), turned, everything),
    ]
    for result, at, rows in trials:
        if result is None or result.ndim != base.ndim or len(result) <= max(at):
            return False
        if not np.allclose(result[list(at)], base[rows], rtol=1e-5, atol=1e-6, equal_nan=True):
            return False
    moved = take(everything, everything)
    conclusive = np.isfinite(base).all() and moved is not None and not np.allclose(moved, base)
    return True if conclusive else None
