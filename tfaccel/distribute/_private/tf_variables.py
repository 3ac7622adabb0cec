"""TensorFlow's variables, alone and inside a `keras.Variable`: which one is read, and how.

Keras exports a variable's value, and TensorFlow its resource; neither exports which variable holds
the value, nor which copy of several is read. Seen with TensorFlow 2.21 and Keras 3.15, watched by
`tests/distribute/test_private.py` and `tests/model_parallel/test_private.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

# A variable of several replicas, for reads outside of them.
from tensorflow.python.distribute.values import DistributedVariable

# A variable with only a handle: a plan allocates nothing.
from tensorflow.python.ops.resource_variable_ops import UninitializedVariable

__all__ = [
    "ReadByValue",
    "UninitializedVariable",
    "create_variables_by",
    "handle",
    "read_here",
    "set_tf_variable",
    "tf_variable",
]


class ReadByValue:
    """Mixin for a resource variable whose readers must call `value()`.

    An eager operation reads a resource variable directly by its `_handle`. Where `reads_by_value()`
    holds it finds none, and converts the variable like any other object.
    """

    _stored_handle: Any

    def reads_by_value(self) -> bool:
        """Whether operations must not read directly now."""
        raise NotImplementedError

    @property
    def _handle(self) -> Any:
        return None if self.reads_by_value() else self._stored_handle

    @_handle.setter
    def _handle(self, handle: Any) -> None:
        self._stored_handle = handle

    @property
    def handle(self) -> Any:
        """The handle of the resource."""
        return self._stored_handle


def create_variables_by(creator: Callable[..., Any]) -> None:
    """Has `creator` make the variables that this thread creates outside a strategy; idempotent.

    `tf.variable_creator_scope` would have to be left again, in order.

    Args:
        creator: as `tf.variable_creator_scope` takes it.
    """
    graph = tf.compat.v1.get_default_graph()
    creators = graph._variable_creator_stack
    if all(other is not creator for _, other in creators):
        creators.insert(0, (100, creator))  # above those of a `tf.function`
        graph._variable_creator_stack = creators


def handle(variable: Any) -> tf.Tensor:
    """The resource of a variable, for an operation that changes it: the replica's own."""
    tensor_or_variable = variable.value if isinstance(variable, keras.Variable) else variable
    return tensor_or_variable.handle


def tf_variable(variable: Any) -> Any:
    """The TensorFlow variable of a `keras.Variable`, or a TensorFlow variable itself.

    None before it is created. The public `value` is a tensor of another dtype inside a
    mixed-precision layer, and the replica's own inside a replica.
    """
    return variable._value if isinstance(variable, keras.Variable) else variable


def set_tf_variable(variable: keras.Variable, tf_variable: Any) -> None:
    """Makes a Keras variable, whose identity is kept everywhere, hold another variable."""
    variable._value = tf_variable


def read_here(source: Any) -> Any:
    """The tensor that a gradient's source is read from in the current graph.

    Outside of `Strategy.run` a program reads one copy of a variable of several replicas, or a copy
    on the host of one of a mesh, and a tape records that. TensorFlow reads the variable's own
    handle, which a replicated one only has inside a replica.
    """
    variable = source._value if isinstance(source, keras.Variable) else source
    if getattr(variable, "on_tape", None) is not None:
        return variable.on_tape
    if isinstance(variable, DistributedVariable) and tf.distribute.in_cross_replica_context():
        return variable._get_on_device_or_primary()
    return source
