"""Metrics whose results are computed on the host, after the steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from tfaccel.distribute.model_parallel import phase


@contextmanager
def read_on_host(metrics: list[Any]) -> Iterator[None]:
    """Gives host values for the variables of `metrics`.

    An operation that takes the variable itself, as the product in R2Score, reads a DTensor from it,
    which cannot be mixed with the host tensors read elsewhere.
    """
    if phase.current() != phase.HOST or not tf.executing_eagerly():
        yield
        return
    variables = {id(v): v for metric in metrics for v in metric.variables}.values()
    values = [(v, tf.constant(v.numpy())) for v in variables]
    with keras.StatelessScope(state_mapping=values):
        yield
