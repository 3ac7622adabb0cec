"""Strategy factories, one per file, and the function that calls the right one."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from tfaccel.strategies.auto import Choice, choose
from tfaccel.strategies.options import Options
from tfaccel.strategies.selection import FACTORIES, NAMES, Selection, requested_name, select

if TYPE_CHECKING:
    import tensorflow as tf

    from tfaccel.cluster import Cluster
    from tfaccel.hardware import Device

__all__ = ["FACTORIES", "NAMES", "Choice", "Options", "choose", "create", "select", "strategy"]


Selector: TypeAlias = "Callable[[Mapping[str, str], Sequence[Device], Cluster | None], Selection]"
"""Selects by the environment, the devices of this process and the workers of this job."""


def strategy(name: str | None = None, **options: Any) -> tf.distribute.Strategy:
    """Creates a strategy by its name, as `tfaccel.strategy` does without a model.

    Args:
        name: one of `NAMES`; None takes ``TFACCEL_STRATEGY``, else ``"auto"``.
        **options: see `Options`; one that is not given is read from ``TFACCEL_<OPTION>``.

    Raises:
        StrategyError: when hardware, cluster and options are incompatible.
        ClusterError: when the cluster's description is wrong, or workers do not arrive.
    """
    requested_name(name, os.environ)  # an invalid one is an error before TensorFlow is imported
    return create(functools.partial(select, name, options))


def create(selects: Selector) -> tf.distribute.Strategy:
    """Creates the strategy that is selected for this process.

    Raises:
        StrategyError: as `strategy`.
        ClusterError: as `strategy`.
    """
    from tfaccel import hardware, installed, onednn

    installed.check_before_import()
    if "tensorflow" not in sys.modules:
        onednn.prefer(os.environ)
    from tfaccel.cluster import resolve as find_cluster
    from tfaccel.distribute import data_service, private_api_check, rematerialization
    from tfaccel.strategies import describe, process_settings, request

    private_api_check.check()
    detected, cluster = hardware.detect(), find_cluster(os.environ)
    selected = selects(os.environ, detected, cluster)
    policy = process_settings.apply(selected.options, detected, selected.devices)
    factory = importlib.import_module(FACTORIES[selected.choice.name])
    requested = request.Request(selected.options, selected.devices, cluster)
    created: tf.distribute.Strategy = factory.make(requested)
    rematerialization.in_scope_of(created, requested.options.rematerialization)
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
