"""Random operations of a step, which give constants while the step is compared with one device's.

A step is compiled once, and takes most of its first time for that. So what is compared is the very
step that trains, and each of its random operations is followed by a choice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from tfaccel.distribute import draws
from tfaccel.distribute.model_parallel.plan import Plan
from tfaccel.distribute.model_parallel.rewrites.operation import StandIn
from tfaccel.distribute.model_parallel.variable import MeshVariable


class Switch:
    """Between what is drawn and constants.

    Args:
        strategy: of a mesh.

    Attributes:
        drawn: how many random operations have been traced since it was turned on.
        unknown: what was traced since then of which we cannot say what it would give, or None.
    """

    def __init__(self, strategy: Any) -> None:
        self._strategy = strategy
        self._constants: MeshVariable | None = None
        self._on = False
        self.drawn = 0
        self.unknown: Exception | None = None

    @contextmanager
    def on(self) -> Iterator[None]:
        """Gives constants in the steps that are first traced inside."""
        self._on, self.drawn, self.unknown = True, 0, None
        if self._constants is not None:
            self._constants.assign(1.0)
        try:
            yield
        finally:
            self._on = False
            if self._constants is not None:
                self._constants.assign(0.0)

    def applied(self, operation: Any) -> Any:
        """An operation that was traced, or what is used in its place."""
        if not self._on:
            return operation
        try:
            constant = draws.constant_number(operation)
        except draws.UnknownDrawError as reason:
            self.unknown = reason
            return operation
        if constant is None:
            return operation
        self.drawn += 1
        (drawn,) = operation.outputs
        return StandIn(operation, [_chosen(self._variable().value(), constant, drawn)])

    def _variable(self) -> MeshVariable:
        if self._constants is None:
            with tf.init_scope():
                self._constants = MeshVariable(
                    initial_value=tf.zeros([]),  # as it is left after a check
                    plan=Plan((), (), "whether random operations give constants"),
                    mesh=self._strategy.mesh,
                    strategy=self._strategy,
                    trainable=False,
                    name="constants",
                )
                self._constants.assign(1.0)
        return self._constants


def _chosen(on: tf.Tensor, constant: tf.Tensor, drawn: tf.Tensor) -> tf.Tensor:
    """The first where `on` is one, the second where it is zero, to the bit."""
    on = tf.cast(on, drawn.dtype)
    return constant * on + drawn * (1 - on)
