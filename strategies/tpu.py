"""TPU: the cores of a TPU, found and started. Not yet run on a TPU: see the README."""

from __future__ import annotations

import os

import keras
import tensorflow as tf
from absl import logging

from tfaccel import installed
from tfaccel.cluster import gce_tpu, gke_tpu, tpu_address
from tfaccel.cluster.cluster import Cluster
from tfaccel.distribute.tpu_strategy import TPUStrategy
from tfaccel.errors import StrategyError
from tfaccel.strategies.accepted_options import ANY, COMMON
from tfaccel.strategies.request import Request
from tfaccel.strategies.tpu_errors import explain

ACCEPTS = {
    **COMMON,
    "devices": (),  # a TPU is used whole
    "device_type": ("auto", "tpu"),
    "gradient_accumulation": ("reduced",),
    "partial_batch": ("pad", "drop"),
    "check": ("auto", "off"),
    "steps_per_execution": ANY,
    "tpu": ANY,
    "tpu_zone": ANY,
    "tpu_project": ANY,
}


def make(request: Request) -> tf.distribute.Strategy:
    """Finds the TPU, connects to it, initialises it and returns a strategy over its cores.

    Raises:
        StrategyError: when there is no TPU, or it cannot be reached or driven, or other workers
            would drive it too.
    """
    options = request.options
    address = tpu_address.find(options.tpu, options.tpu_zone, options.tpu_project, os.environ)
    _refuse_workers(request.cluster, address)
    if address.is_local:
        installed.check_tpu(installed.packages())
    if keras.config.dtype_policy().name == "mixed_float16":
        raise StrategyError(
            "tfaccel: precision='mixed_float16' was requested on a TPU; expected 'mixed_bfloat16', "
            "which needs no loss scaling, or 'float32'."
        )
    try:
        strategy = TPUStrategy(
            initialize(address), options.steps_per_execution, request.replica_options
        )
    except (ValueError, IndexError, tf.errors.OpError, RuntimeError, OSError) as reason:
        raise StrategyError(explain(address, reason)) from reason
    if keras.config.dtype_policy().name == "float32":
        # A warning: absl shows nothing below by default.
        logging.warning(
            "tfaccel: the policy is float32, and a TPU multiplies bfloat16 fastest: use "
            "precision='mixed_bfloat16', or 'auto'."
        )
    return strategy


def _refuse_workers(cluster: Cluster | None, address: tpu_address.TpuAddress) -> None:
    """Raises when this process is one of several, which would each train a separate model."""
    if cluster is None or cluster.size == 1:
        return
    # One process drives a slice, on its first host, by its name.
    slices = (gke_tpu.SOURCE, gce_tpu.SOURCE)
    if cluster.source in slices and cluster.is_chief and not address.is_local:
        return
    raise StrategyError(
        f"tfaccel: strategy 'tpu' drives {address} from this process alone, but {cluster.source} "
        f"describes {cluster.size} workers, of which this is number {cluster.rank}; expected one "
        "process: run the script on the first host of a slice alone with tpu=<its name>, or unset "
        "the variables of other workers, which `tfaccel env` lists."
    )


def initialize(
    address: tpu_address.TpuAddress,
) -> tf.distribute.cluster_resolver.TPUClusterResolver:
    """Connects to a TPU and initialises it, which erases its state.

    Returns:
        Its resolver.
    """
    resolver = tf.distribute.cluster_resolver.TPUClusterResolver(
        address.name, zone=address.zone, project=address.project
    )
    if not address.is_local:
        tf.config.experimental_connect_to_cluster(resolver)
    tf.tpu.experimental.initialize_tpu_system(resolver)
    return resolver
