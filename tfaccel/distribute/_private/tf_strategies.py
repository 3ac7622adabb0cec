"""The strategies of `tf.distribute`: their Extended classes, and a replica's number.

TensorFlow exports only the owners of the Extended classes, which implement a strategy. Seen with
TensorFlow 2.21; `tests/distribute/test_private.py` watches what is read and set here, and
`tests/distribute/test_tpu_strategy.py` what TPUs need.
"""

from __future__ import annotations

import tensorflow as tf

# Overridden: how variables are created, whether replicas may pause for each other, and which of a
# worker's devices are used.
from tensorflow.python.distribute.collective_all_reduce_strategy import (
    CollectiveAllReduceExtended,
)

# As CollectiveAllReduceExtended, for the other two strategies with replicas.
from tensorflow.python.distribute.mirrored_strategy import MirroredExtended
from tensorflow.python.distribute.tpu_strategy import TPUExtended

__all__ = [
    "CollectiveAllReduceExtended",
    "MirroredExtended",
    "TPUExtended",
    "first_replica",
    "local_replica_index",
    "pack_variables",
]


def pack_variables(strategy: tf.distribute.TPUStrategy) -> None:
    """Lets a function capture one handle for all copies of a variable.

    TensorFlow's constructor does so, but creates its own Extended, which is why ours bypasses it.
    """
    strategy._enable_packed_variable_in_eager_mode = True


def local_replica_index() -> int:
    """The index of the current replica in this worker; only its global id, a tensor, is public."""
    return int(tf.distribute.get_replica_context()._replica_id)


def first_replica(strategy: tf.distribute.Strategy) -> int:
    """The number, among all, of the first replica of this process; public inside a replica only."""
    return int(strategy.extended._get_replica_id_in_sync_group(0))
