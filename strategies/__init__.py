"""Strategy factories, one per file, and the function that calls the right one."""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from tfaccel.strategies.auto import Choice, choose
from tfaccel.strategies.options import Options
from tfaccel.strategies.selection import FACTORIES, NAMES, requested_name, select

if TYPE_CHECKING:
    import tensorflow as tf

    from tfaccel.planner.models import Source

__all__ = ["FACTORIES", "NAMES", "Choice", "Options", "choose", "select", "strategy"]


def strategy(
    name: str | None = None,
    *,
    model: Source | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> tf.distribute.Strategy:
    """Creates the strategy that fits the hardware. Call it first, before TensorFlow is used.

    Args:
        name: one of `NAMES`; None takes ``TFACCEL_STRATEGY``, else ``"auto"``.
        model: for ``"auto"``: a function that builds and compiles the model, or what else
            `tfaccel.plan` takes. Where it does not fit on the devices as replicas, it is split
            over them (`tfaccel.strategies.auto_for_model`).
        batch_size: rows of the global batch that `model` is trained with.
        **options: see `Options`; one that is not given is read from ``TFACCEL_<OPTION>``.

    Returns:
        A `tf.distribute.Strategy`: build and compile a Keras model under its `scope()`.

    Raises:
        StrategyError: when hardware, cluster and options are incompatible.
        ClusterError: when the cluster's description is wrong, or workers do not arrive.

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
    requested_name(name, os.environ)  # an invalid one is an error before TensorFlow is imported
    if "tensorflow" not in sys.modules:
        onednn.prefer(os.environ)
    from tfaccel.cluster import resolve as find_cluster
    from tfaccel.distribute import data_service, private_api_check
    from tfaccel.strategies import auto_for_model, describe, process_settings, request

    private_api_check.check()
    detected, cluster = hardware.detect(), find_cluster(os.environ)
    if model is None and batch_size is None:
        selected = select(name, options, os.environ, detected, cluster)
    else:
        selected = auto_for_model.select(
            model, batch_size, name, options, os.environ, detected, cluster
        )
    policy = process_settings.apply(selected.options, detected, selected.devices)
    factory = importlib.import_module(FACTORIES[selected.choice.name])
    requested = request.Request(selected.options, selected.devices, cluster)
    created: tf.distribute.Strategy = factory.make(requested)
    data_service.use(requested.options.data_service or "")
    if requested.options.profile is not None:
        from tfaccel.distribute.profile import ProfileRange, profiler

        folder = requested.options.profile_dir
        folder = folder if "://" in folder else os.path.abspath(folder)
        rank = 0 if cluster is None else cluster.rank
        profiler.schedule(ProfileRange(*requested.options.profile, folder, rank))
    used = {
        o: getattr(created, o, getattr(requested.options, o))
        for o in ("communication", "partial_batch")
    }
    selected = dataclasses.replace(selected, options=dataclasses.replace(requested.options, **used))
    describe.remember(created, selected, policy)
    return created
