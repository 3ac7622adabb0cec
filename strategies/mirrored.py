"""Mirrored: the devices of one machine, each with a copy of the model and a part of the batch."""

from __future__ import annotations

import tensorflow as tf

from tfaccel.distribute.mirrored import MirroredStrategy
from tfaccel.errors import StrategyError
from tfaccel.strategies.accepted_options import ANY, COMMON
from tfaccel.strategies.request import Request

ACCEPTS = {
    **COMMON,
    "data_service": ANY,
    "profile": ANY,
    "profile_dir": ANY,
    "communication": ("auto", "ring", "nccl"),
    "gradient_compression": ANY,
    "gradient_accumulation": ANY,
    "local_steps": ANY,
    "partial_batch": ANY,
    "input": ANY,  # one process passes the whole batch
}


def make(request: Request) -> tf.distribute.Strategy:
    """Returns a `MirroredStrategy` over the devices of the request.

    Raises:
        StrategyError: when the job has more than one worker, or NCCL is requested without GPUs.
    """
    request.refuse_cluster("mirrored")
    gpus = all(name.startswith("GPU") for name in request.devices)
    if request.options.communication == "nccl" and not gpus:
        raise StrategyError(
            "tfaccel: communication='nccl' was requested on CPUs; expected 'ring' or 'auto'."
        )
    return MirroredStrategy(
        list(request.devices),
        ring=request.options.communication == "ring",
        options=request.replica_options,
    )
