"""Metrics whose results are computed on the host, after the steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from tfaccel.distribute.model_parallel import phase
from tfaccel.distribute.replacements import Replacements


@contextmanager
def read_on_host(metrics: list[Any]) -> Iterator[None]:
    """Holds host values in the place of the variables of `metrics`.

    An operation that is given a variable itself, as the product in R2Score, reads a DTensor from
    it, which does not go with the host tensors that all else reads.
    """
    with Replacements() as replacements:
        if phase.current() == phase.HOST and tf.executing_eagerly():
            inner = [each for metric in metrics for each in getattr(metric, "metrics", ())]
            for metric in [*metrics, *inner]:
                for name, value in list(vars(metric).items()):
                    if isinstance(value, keras.Variable):
                        replacements.replace(metric, name, tf.constant(value.numpy()))
        yield
