"""The states of the random operations of steps, such as `tf.random.normal` in a layer."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import tensorflow as tf

from tfaccel.distribute.model_parallel.layout_planner import VariablePlan
from tfaccel.distribute.model_parallel.variable import MeshVariable


class Seeds:
    """One state for each traced random operation.

    Args:
        strategy: of a mesh.
    """

    def __init__(self, strategy: Any) -> None:
        self._strategy = strategy
        self._states: list[MeshVariable] = []

    def following(self, seed: int, seed2: int) -> tf.Tensor:
        """A seed of two numbers for one operation, different at each step.

        Args:
            seed: the operation's, as TensorFlow derives it from the global seed and its own.
            seed2: the same; both zero where no seed was set.
        """
        with tf.init_scope():
            start = np.array([seed, seed2 << 20], np.int64)
            if not seed and not seed2:
                drawn = np.frombuffer(os.urandom(8), np.int64) >> 1
                if self._strategy.cluster is not None:
                    (drawn,) = self._strategy.broadcast([drawn])
                start[0] = int(drawn[0])
            plan = VariablePlan((None,), (None,), "the state of a random operation")
            state = MeshVariable(
                initial_value=start,
                plan=plan,
                mesh=self._strategy.mesh,
                strategy=self._strategy,
                trainable=False,
                name="random_state",
            )
        self._states.append(state)
        value = state.value()
        state.assign_add(tf.constant([0, 1], tf.int64))
        return value
