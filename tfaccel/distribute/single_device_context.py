"""A step of a replicated model as one device would take it, with all rows here."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfaccel.distribute import gradients, step


class SingleDeviceContext(tf.distribute.ReplicaContext):  # type: ignore[misc]
    """The context of such a step: this worker's first replica, without visible others."""

    def __init__(self, strategy: Any) -> None:
        placement = strategy.placement
        # Variables request the replica that they belong to.
        super().__init__(strategy, replica_id_in_sync_group=placement.rank * placement.local)

    @property
    def replica_id_in_sync_group(self) -> tf.Tensor:
        """0: there is one replica."""
        return tf.constant(0, name="replica_id_in_sync_group")

    @property
    def num_replicas_in_sync(self) -> int:
        """1."""
        return 1

    def all_reduce(self, reduce_op: Any, value: Any, options: Any = None) -> Any:
        """Returns `value`, which is the sum and the mean of one."""
        return tf.nest.map_structure(tf.identity, value, expand_composites=True)

    def all_gather(self, value: Any, axis: Any, options: Any = None) -> Any:
        """Returns `value`."""
        return tf.nest.map_structure(tf.identity, value)


def run_on_one_device(strategy: Any, fn: Any, data: Any) -> tuple[Any, list[Any]]:
    """Runs a model's step over `data` in the graph that is being traced.

    Returns:
        What `fn` returned, and the gradients that its tapes took: pairs of the variables and the
        gradients of each call.
    """
    device = strategy.extended.worker_devices[0]
    with (
        SingleDeviceContext(strategy),
        step.as_one_device(),
        tf.device(device),
        gradients.recorded() as seen,
    ):
        # Here, unlike in the cross-replica context, a log may be a variable to read.
        return keras.tree.map_structure(tf.convert_to_tensor, fn(data)), seen
