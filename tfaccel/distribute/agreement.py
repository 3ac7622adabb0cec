"""The random state that all workers start from.

Workers that shuffle with seeds of their own see some rows twice and others never
(https://github.com/tensorflow/tensorflow/issues/56513). They take over the chief's state before
the first dataset is made; where the script has seeded all of them alike, that changes nothing.
"""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import tensorflow as tf

from tfaccel.distribute import _private


def offer() -> bytes:
    """The state of Python, NumPy and TensorFlow here; TensorFlow gets a seed if it has none."""
    if _private.global_seed() is None:
        tf.random.set_seed(random.SystemRandom().randrange(2**31))
    name, keys, *rest = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "tensorflow": _private.global_seed(),
    }
    return json.dumps(state).encode()


def adopt(offered: bytes) -> None:
    """Takes over a state that `offer` gave."""
    state: dict[str, Any] = json.loads(offered)
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
    if _private.global_seed() != state["tensorflow"]:
        tf.random.set_seed(state["tensorflow"])
