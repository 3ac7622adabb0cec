"""Batches on the mesh."""

from __future__ import annotations

import tensorflow as tf

from tfaccel.distribute.model_parallel.mesh_batches import to_dtensors, to_mesh


def test_none_stays_none_in_a_distributed_batch() -> None:
    nothing = tf.experimental.Optional.empty(None)  # so a generator of Keras says it
    batch = to_mesh({"a": None, "b": (nothing, None)}, mesh=None, axis=None)
    assert isinstance(batch, tf.distribute.DistributedValues)
    assert to_dtensors(batch) == {"a": None, "b": (None, None)}
