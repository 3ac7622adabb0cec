"""Overrides random operations with constants while a step is compared with one device's.

Compiling a step takes most of its first run. So the compared step is the one that trains, and each
of its random operations is followed by a select.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from tfaccel.distribute import constant_random
from tfaccel.distribute._private import OperationProxy
from tfaccel.distribute.model_parallel.layout_planner import VariablePlan
from tfaccel.distribute.model_parallel.variable import MeshVariable
from tfaccel.distribute.replacements import replaced


class RandomOverride:
    """Selects between random values and constants.

    Args:
        strategy: of a mesh.

    Attributes:
        random_ops: the number of random operations traced since it was turned on.
        unsupported: an operation traced since then whose result is unknown, or None.
    """

    def __init__(self, strategy: Any) -> None:
        self._strategy = strategy
        self._constants: MeshVariable | None = None
        self._enabled = False
        self.random_ops = 0
        self.unsupported: Exception | None = None

    @contextmanager
    def enabled(self) -> Iterator[None]:
        """Uses constants in steps that are first traced inside."""
        self.random_ops, self.unsupported = 0, None
        if self._constants is not None:
            self._constants.assign(1.0)
        try:
            with replaced(self, "_enabled", True):
                yield
        finally:
            if self._constants is not None:
                self._constants.assign(0.0)

    def apply(self, operation: Any) -> Any:
        """A traced operation, or its replacement."""
        if not self._enabled:
            return operation
        try:
            constant = constant_random.constant_number(operation)
        except constant_random.UnknownRandomOpError as reason:
            self.unsupported = reason
            return operation
        if constant is None:
            return operation
        self.random_ops += 1
        (drawn,) = operation.outputs
        return OperationProxy(operation, [_select(self._variable().value(), constant, drawn)])

    def _variable(self) -> MeshVariable:
        if self._constants is None:
            with tf.init_scope():
                self._constants = MeshVariable(
                    initial_value=tf.zeros([]),  # its state after a check
                    plan=VariablePlan((), (), "whether random operations give constants"),
                    mesh=self._strategy.mesh,
                    strategy=self._strategy,
                    trainable=False,
                    name="constants",
                )
                self._constants.assign(1.0)
        return self._constants


def _select(enabled: tf.Tensor, constant: tf.Tensor, drawn: tf.Tensor) -> tf.Tensor:
    """The first where `enabled` is one, the second where it is zero, bit-identical."""
    enabled = tf.cast(enabled, drawn.dtype)
    return constant * enabled + drawn * (1 - enabled)
