"""The random state that all workers start from.

Workers that shuffle with different seeds see some rows twice and others never
(https://github.com/tensorflow/tensorflow/issues/56513). They adopt the chief's state before the
first dataset is created; if the script has set the same seed on all of them, that has no effect.

A script without a global seed stays without one, so that `shuffle(1000, seed=3)` orders rows as on
one device. Only operations without any seed, which would be seeded from each worker's clock, get
seeds from a stream that all workers share.
"""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import tensorflow as tf

from tfaccel.distribute import _private

_LARGEST_SEED = 2**31 - 1


def serialize() -> bytes:
    """The random state of Python, NumPy and TensorFlow, and a seed for unseeded operations."""
    name, keys, *rest = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "tensorflow": _private.global_seed(),
        "unseeded": _next_stream(),
    }
    return json.dumps(state).encode()


def restore(offered: bytes) -> None:
    """Restores a state from `serialize`."""
    state: dict[str, Any] = json.loads(offered)
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
    if _private.global_seed() != state["tensorflow"]:
        tf.random.set_seed(state["tensorflow"])
    _streams[:] = [SeedStream(state["unseeded"])]
    _private.seed_unseeded(_streams[0])


class SeedStream:
    """The seeds of unseeded random operations and datasets, the same on all workers.

    Args:
        seed: shared by all workers.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._stream = random.Random(seed)

    def draw(self) -> int:
        """The next number of the stream."""
        return self._stream.randrange(1, _LARGEST_SEED)

    def __call__(self) -> tuple[int, int] | None:
        """The two seeds of one operation; None where it may differ from worker to worker."""
        if _in_replica():
            return None
        if tf.executing_eagerly():
            return self._seed, self._stream.randrange(_LARGEST_SEED)
        # As TensorFlow does with a global seed: an operation's number in its graph. A graph that
        # only one worker creates then does not affect others.
        graph = tf.compat.v1.get_default_graph()
        number = getattr(graph, "_tfaccel_unseeded", 0)
        graph._tfaccel_unseeded = number + 1
        return self._seed, number


_streams: list[SeedStream] = []  # the one in use, if any


def _next_stream() -> int:
    """A seed for another stream: from the current one, which workers share, or from the clock."""
    return _streams[0].draw() if _streams else random.SystemRandom().randrange(1, _LARGEST_SEED)


def _in_replica() -> bool:
    """Whether this is one of several replicas, each with its own rows and noise."""
    if not tf.distribute.has_strategy() or tf.distribute.in_cross_replica_context():
        return False
    return hasattr(tf.distribute.get_strategy(), "placement")
