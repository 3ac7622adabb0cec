"""Model parallel: a mesh of devices, each with a part of the model, of the batch, or of both."""

from __future__ import annotations

import tensorflow as tf

from tfaccel.distribute.model_parallel.strategy import ModelParallelStrategy
from tfaccel.errors import StrategyError
from tfaccel.strategies import process_settings, worker_startup
from tfaccel.strategies.accepted_options import ANY, COMMON
from tfaccel.strategies.request import Request

ACCEPTS = {
    **COMMON,
    "data_service": ANY,
    "profile": ANY,
    "profile_dir": ANY,
    "mesh": ANY,
    "layouts": ANY,
    "gradient_accumulation": ("reduced",),
    "partial_batch": ("exact",),
    "stall_timeout": ANY,
}


def make(request: Request) -> tf.distribute.Strategy:
    """Meets the other workers, if there are any, and returns the strategy over all devices.

    Raises:
        StrategyError: when no mesh was requested.
        LayoutError: when the mesh does not fit the devices, or a rule does not fit the mesh.
        ClusterError: when a worker does not arrive in time, or belongs to another job.
    """
    cluster, options = request.cluster, request.options
    workers = cluster.size if cluster is not None else 1
    if options.mesh is None:
        raise StrategyError(
            "tfaccel: strategy 'model_parallel' needs a mesh; pass one, such as "
            f"mesh='batch=1,model={len(request.devices) * workers}' for the "
            f"{len(request.devices) * workers} devices here."
        )
    devices = process_settings.restrict_visible_gpus(request.devices)
    if cluster is not None and workers > 1:
        worker_startup.rendezvous_for_tf_collectives(cluster, options)
    return ModelParallelStrategy(
        options.mesh,
        "auto" if options.layouts is None else options.layouts,
        devices=devices,
        cluster=cluster if workers > 1 else None,
        check=options.check,
    )
