"""Strategy factories, one a file, and the function that calls the right one."""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from tfaccel.strategies.auto import Choice, choose
from tfaccel.strategies.options import Options
from tfaccel.strategies.resolver import FACTORIES, NAMES, requested_name, resolve

if TYPE_CHECKING:
    import tensorflow as tf

__all__ = ["FACTORIES", "NAMES", "Choice", "Options", "choose", "resolve", "strategy"]


def strategy(name: str | None = None, **options: Any) -> tf.distribute.Strategy:
    """Makes the strategy that fits the hardware. Call it first, before TensorFlow is used.

    Args:
        name: one of `NAMES`; None takes ``TFACCEL_STRATEGY``, else ``"auto"``.
        **options: see `Options`; one that is not given is read from ``TFACCEL_<OPTION>``.

    Returns:
        A `tf.distribute.Strategy`: build and compile a Keras model under its `scope()`.

    Raises:
        StrategyError: when hardware, cluster and options do not go together.
        ClusterError: when the cluster's description is wrong, or workers do not come.

    Example:
        ```python
        with tfaccel.strategy("auto").scope():
            model = build_model()
            model.compile("adam", "mse")
        model.fit(x, y, batch_size=64)
        ```
    """
    from tfaccel import hardware, installed, onednn

    installed.check_before_import()
    requested_name(name, os.environ)  # a wrong one is told before TensorFlow is imported
    if "tensorflow" not in sys.modules:
        onednn.prefer(os.environ)
    from tfaccel.cluster import resolve as find_cluster
    from tfaccel.distribute import compatibility
    from tfaccel.strategies import describe, process_settings, request

    compatibility.check()
    detected, cluster = hardware.detect(), find_cluster(os.environ)
    resolved = resolve(name, options, os.environ, detected, cluster)
    policy = process_settings.apply(resolved.options, detected, resolved.devices)
    factory = importlib.import_module(FACTORIES[resolved.choice.name])
    requested = request.Request(resolved.options, resolved.devices, cluster)
    made: tf.distribute.Strategy = factory.make(requested)
    used = {
        o: getattr(made, o, getattr(requested.options, o))
        for o in ("communication", "partial_batch")
    }
    resolved = dataclasses.replace(resolved, options=dataclasses.replace(requested.options, **used))
    describe.remember(made, resolved, policy)
    return made
