"""Seeds: the global ones of TensorFlow and Keras, and those of operations that have none.

Both libraries let a program set its seed, but not read it, nor seed operations that have none. Seen
with TensorFlow 2.21 and Keras 3.15, watched by `tests/distribute/test_private.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

# Where Keras keeps its global state.
from keras.src.backend.common import global_state

# `tf.random.set_seed` has no getter.
from tensorflow.python.eager.context import global_seed

# Every random operation and every dataset gets its seeds from `random_seed.get_seed`. Without any
# seed, it is seeded from the clock; there is no public way to seed such operations without changing
# the numbers of those that have their own seed.
from tensorflow.python.framework import random_seed

__all__ = ["global_seed", "global_seed_generator", "seed_unseeded"]


def seed_unseeded(pair: Callable[[], tuple[int, int] | None] | None) -> None:
    """Gives seeds to the random operations that have none in a program without a global seed.

    Args:
        pair: called for each such operation on creation; returns its two seeds, or None to leave it
            unseeded. None for TensorFlow's own behaviour.
    """
    plain = getattr(random_seed.get_seed, "__wrapped__", random_seed.get_seed)

    @functools.wraps(plain)
    def get_seed(op_seed: Any) -> Any:
        unset = global_seed() if tf.executing_eagerly() else tf.compat.v1.get_default_graph().seed
        seeds = pair() if pair is not None and op_seed is None and unset is None else None
        return plain(op_seed) if seeds is None else seeds

    random_seed.get_seed = plain if pair is None else get_seed


def global_seed_generator() -> keras.random.SeedGenerator | None:
    """What Keras's random operations without a seed draw from, or None before the first one."""
    return global_state.get_global_attribute("global_seed_generator")
