"""MirroredStrategy for Keras 3: the devices of one machine, a replica on each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfaccel.distribute import _private
from tfaccel.distribute.effects import InOrderOfReplicas
from tfaccel.distribute.fit import KerasFit, KerasFitExtended
from tfaccel.distribute.layer_state import AveragesLayerState
from tfaccel.distribute.replica_options import ReplicaOptions


class MirroredExtended(
    AveragesLayerState,
    InOrderOfReplicas,
    KerasFitExtended,
    _private.MirroredExtended,  # type: ignore[misc]
):
    """How `MirroredStrategy` creates variables and runs steps."""


class MirroredStrategy(KerasFit, tf.distribute.MirroredStrategy):  # type: ignore[misc]
    """Data parallelism over the devices of this machine.

    Args:
        devices: device names such as ``["GPU:0", "GPU:1"]``; by default all GPUs, else all CPUs.
        cross_device_ops: as for `tf.distribute.MirroredStrategy`.
        options: how the replicas train together; None for the defaults.
        ring: reduce in TensorFlow's rings, even where NCCL is available.
    """

    def __init__(
        self,
        devices: Sequence[str] | None = None,
        cross_device_ops: Any = None,
        options: ReplicaOptions | None = None,
        ring: bool = False,
    ) -> None:
        self._set_options(options)
        _private.reserve_collective_keys(self)
        extended = MirroredExtended(self, devices=devices, cross_device_ops=cross_device_ops)
        if ring:
            _private.use_ring_reduce(extended)
        tf.distribute.Strategy.__init__(self, extended)
