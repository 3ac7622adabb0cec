"""The losses and metrics of a compiled model: which objects they are, and their parts.

A model's public attributes hold the user's arguments, or the metrics of all kinds in one list. Seen
with Keras 3.15, watched by `tests/distribute/test_private.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras

__all__ = [
    "additional_losses",
    "compiled_losses",
    "compiled_metrics",
    "compiles_in_step",
    "loss_tracker",
    "loss_trackers",
    "metric_function",
    "metrics_in",
    "sum_additional_losses",
    "wrapped_function",
]


def compiled_losses(model: keras.Model) -> list[keras.losses.Loss]:
    """The `Loss` objects that `model.compile(loss=...)` created or got.

    `model.loss` holds the user's argument (a name, a function, a nest of them); only the compiled
    loss holds the objects that are called.
    """
    compiled = getattr(model, "_compile_loss", None)
    flat = getattr(compiled, "_flat_losses", None) or []
    return [entry[1] for entry in flat if isinstance(entry[1], keras.losses.Loss)]


def compiles_in_step(model: keras.Model) -> bool:
    """Whether the first step is still to build the losses and metrics that `compile` was given.

    Until then Keras has no results, with which an epoch ends. `model.compiled` is True before.
    """
    parts = (getattr(model, name, None) for name in ("_compile_loss", "_compile_metrics"))
    return any(part is not None and not part.built for part in parts)


def wrapped_function(loss: keras.losses.Loss) -> tuple[Any, dict[str, Any]]:
    """The function that a loss wraps, and its options; None for a class with its own `call`.

    Keras wraps its own functions and those of a script in the same class.
    """
    return getattr(loss, "fn", None), dict(getattr(loss, "_fn_kwargs", None) or {})


def sum_additional_losses(model: keras.Model, summed: Callable[[Any], Any]) -> None:
    """Makes `summed` compute what one entry of `model.losses` adds to Keras's loss.

    Only `compute_loss` is public, which has already summed all of them. Keras's own value of an
    entry is its sum.
    """
    object.__setattr__(model, "_aggregate_additional_loss", summed)


def additional_losses(model: keras.Model) -> Any:
    """The function that currently computes it."""
    return getattr(model, "_aggregate_additional_loss", None)


def loss_tracker(model: keras.Model) -> keras.metrics.Mean | None:
    """The metric in which Keras's steps keep the mean loss; `model.metrics` only names it."""
    return getattr(model, "_loss_tracker", None)


def loss_trackers(model: keras.Model) -> list[keras.metrics.Mean]:
    """The metrics in which a model of several outputs keeps the loss of each."""
    return list(getattr(getattr(model, "_compile_loss", None), "metrics", ()))


def compiled_metrics(model: keras.Model) -> list[keras.metrics.Metric]:
    """The metrics of `(y_true, y_pred)` that `model.compile(metrics=...)` was given.

    `model.metrics` also holds those that a custom step updates with its own values.
    """
    compiled = getattr(model, "_compile_metrics", None)
    return list(compiled.metrics) if compiled is not None else []


def metrics_in(metric: Any) -> list[keras.metrics.Metric]:
    """The metrics that a metric or a compiled container consists of."""
    return list(getattr(metric, "_metrics", ()))


def metric_function(metric: keras.metrics.Metric) -> Callable[[Any, Any], Any] | None:
    """The function that a metric averages, with its arguments bound; None for another kind.

    Where it returns one number for all rows, the number of rows is lost to the average.
    """
    function = getattr(metric, "_fn", None)
    if function is None or not isinstance(metric, keras.metrics.MeanMetricWrapper):
        return None
    arguments = getattr(metric, "_fn_kwargs", None) or {}
    if not arguments:
        return function  # type: ignore[no-any-return]
    return functools.wraps(function)(functools.partial(function, **arguments))
