"""The collectives of `tf.distribute`: their keys, their rings, and two that it does not export.

A replica's launcher starts its collectives, and counts the keys that match them with those of the
other replicas. Seen with TensorFlow 2.21, watched by `tests/distribute/test_private.py` and
`tests/distribute/test_compression.py`.
"""

from __future__ import annotations

import itertools
from typing import Any

import tensorflow as tf

# Every reduction and gather of the strategies with replicas goes through this class and its
# `_launchers`, one for each device; other transports replace them there.
from tensorflow.python.distribute.cross_device_ops import CollectiveAllReduce
from tensorflow.python.eager.context import context

from tfaccel.distribute._private.tf_strategies import MirroredExtended

__all__ = [
    "CollectiveAllReduce",
    "abort_collectives",
    "all_gather",
    "all_to_all",
    "exchange_group_size",
    "reserve_collective_keys",
    "use_ring_reduce",
]

_key_bases = itertools.count(1 << 20, 1 << 10)


def abort_collectives(why: str) -> None:
    """Makes collectives that run or begin raise `tf.errors.UnavailableError` with this message.

    TensorFlow does so itself when a message to another worker fails. But where it only waits for
    one, as the leader of a group does, it takes until the coordination service misses heartbeats.
    """
    context().abort_collective_ops(tf.errors.UNAVAILABLE, why)


def reserve_collective_keys(strategy: tf.distribute.Strategy) -> None:
    """Gives `strategy` its own collective keys; call it before its Extended is created.

    All strategies of a process start from the same keys, so that the second one's first message
    meets leftovers of the first one's ("Shape mismatch in the collective instance"). Workers create
    their strategies in the same order, and so agree.
    """
    strategy._collective_key_base = next(_key_bases)


def use_ring_reduce(extended: MirroredExtended) -> None:
    """Makes a `MirroredStrategy` reduce in TensorFlow's rings; call it before anything is reduced.

    Inside a function it reduces with its own collectives, regardless of `cross_device_ops`, and
    those are NCCL's on GPUs (except for logical ones, which NCCL rejects).
    """
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=tf.distribute.experimental.CommunicationImplementation.RING
    )
    devices = extended.worker_devices
    collectives = CollectiveAllReduce(devices, len(devices), options, extended._collective_keys)
    extended._communication_options = options
    extended._collective_ops = extended._cross_device_ops = collectives


def exchange_group_size() -> int:
    """The number of replicas `all_to_all` and `all_gather` exchange with; 0 if unsupported.

    They are supported in a graph, on CPU devices: eager replicas run one after the other, and GPUs
    are untested.
    """
    launcher = None if tf.executing_eagerly() else _launcher()
    if launcher is None or "CPU" not in str(launcher._device).upper():
        return 0
    return int(launcher._group_size)


def all_to_all(tensor: tf.Tensor) -> tf.Tensor:
    """Sends row `i` to replica `i`, and returns the rows sent by all replicas, in order.

    `tf.distribute` has no such collective. TensorFlow's own needs the keys that match a replica's
    collectives with those of the others, which the launcher counts.

    Args:
        tensor: float16, float32, float64, int32 or int64, with one row per replica.
    """
    launcher = _launcher()
    with tf.device(launcher._device):
        return tf.raw_ops.CollectiveAllToAllV2(
            input=tensor,
            group_size=launcher._group_size,
            group_key=launcher._group_key,
            instance_key=launcher._next_instance_key(),
            ordering_token=[launcher._get_ordering_token()],
            communication_hint=launcher._options.implementation.value.lower(),
            timeout_seconds=launcher._options.timeout_seconds or 0.0,
            is_stateless=False,
        )


def all_gather(tensor: tf.Tensor) -> tf.Tensor:
    """The rows of all replicas, in order; `ReplicaContext.all_gather` would pause the replicas.

    Args:
        tensor: of the dtypes of `all_to_all`, and of the same shape on every replica.
    """
    return _launcher()._all_gather(tensor, None)


def _launcher() -> Any:
    """The launcher of the current replica's collectives, or None."""
    context = tf.distribute.get_replica_context()
    extended = context.strategy.extended
    collectives = getattr(extended, "_collective_ops", getattr(extended, "_cross_device_ops", None))
    launchers = getattr(collectives, "_launchers", None)
    return launchers[context._replica_id] if launchers else None
