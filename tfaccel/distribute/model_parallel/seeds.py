"""The states of the random operations of steps, such as `tf.random.normal` in a layer."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from tfaccel.distribute import _private
from tfaccel.distribute.model_parallel.layout_planner import VariablePlan
from tfaccel.distribute.model_parallel.variable import MeshVariable

_NAME = "random_state"


class Seeds:
    """One state for each traced random operation.

    Args:
        strategy: of a mesh.

    Attributes:
        states: all of them; a run that resumes restores them.
    """

    def __init__(self, strategy: Any) -> None:
        self._strategy = strategy
        self.states: list[MeshVariable] = []
        self._expected: list[MeshVariable] = []

    def expect(self, names: Iterable[str]) -> None:
        """Creates the states of operations that are yet to be traced, so that they can be restored.

        Args:
            names: as the states of an earlier process were named; others are ignored.
        """
        own = Counter(name.partition(":")[0] for name in names if name.startswith(_NAME))
        own -= Counter(one.name.partition(":")[0] for one in self.states)
        made = [self._state(name, np.zeros(2, np.int64)) for name in own.elements()]
        self.states += made
        self._expected += made

    def following(self, seed: int, seed2: int) -> tf.Tensor:
        """A seed of two numbers for one operation, different at each step.

        Args:
            seed: the operation's, as TensorFlow derives it from the global seed and its own.
            seed2: the same; both zero where no seed was set.
        """
        name = f"{_NAME}_{_private.training_method()}_{seed}_{seed2}"
        state = next((one for one in self._expected if one.name == f"{name}:0"), None)
        if state is not None:
            self._expected.remove(state)
        else:
            with tf.init_scope(), tf.name_scope(""):
                state = self._state(name, self._start(seed, seed2))
            self.states.append(state)
        value = state.value()
        state.assign_add(tf.constant([0, 1], tf.int64))
        return value

    def _start(self, seed: int, seed2: int) -> np.ndarray:
        start = np.array([seed, seed2 << 20], np.int64)
        if not seed and not seed2:
            drawn = np.frombuffer(os.urandom(8), np.int64) >> 1
            if self._strategy.cluster is not None:
                (drawn,) = self._strategy.broadcast([drawn])
            start[0] = int(drawn[0])
        return start

    def _state(self, name: str, value: np.ndarray) -> MeshVariable:
        return MeshVariable(
            initial_value=value,
            plan=VariablePlan((None,), (None,), "the state of a random operation"),
            mesh=self._strategy.mesh,
            strategy=self._strategy,
            trainable=False,
            name=name,
        )
