"""A strategy whose variables have shapes but no values: builds a model without its memory."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from tfaccel.distribute import _private
from tfaccel.distribute.model_parallel.strategy import ModelParallelExtended

# Variables up to this many elements have their initial value: seeds, counters, rates.
_SMALL = 1 << 10


@dataclass(frozen=True)
class Made:
    """A variable that a builder has created.

    Attributes:
        path: its Keras path.
        shape: of the whole.
        dtype: in memory.
        trainable: whether gradients update it.
        layers: the layers being built around it, the innermost last.
        variable: TensorFlow's.
        like: the variable that a slot of an optimizer goes with, or None.
    """

    path: str
    shape: tuple[int, ...]
    dtype: tf.DType
    trainable: bool
    layers: Sequence[Any]
    variable: Any
    like: Any

    @functools.cached_property
    def size(self) -> int:
        """Bytes of the whole."""
        return math.prod(self.shape) * int(self.dtype.size)


class AbstractStrategy(tf.distribute.Strategy):  # type: ignore[misc]
    """In its scope an ordinary Keras model is built and compiled, and its steps are traced.

    Attributes:
        made: the variables, in creation order.
    """

    def __init__(self) -> None:
        self.made: list[Made] = []
        super().__init__(AbstractExtended(self))


class ShapedVariable(_private.ReadByValue, _private.UninitializedVariable):  # type: ignore[misc]
    """A variable without a value.

    Where a builder computes with it, as to resize a table of positions, it is zeros for as long as
    that takes; what is assigned to it is not kept.
    """

    def reads_by_value(self) -> bool:
        """While a model is built."""
        return bool(tf.executing_eagerly())

    def value(self) -> tf.Tensor:
        """Zeros, or in a graph its symbolic value."""
        return tf.zeros(self.shape, self.dtype) if self.reads_by_value() else super().value()

    def read_value(self) -> tf.Tensor:
        """As `value`."""
        return self.value() if self.reads_by_value() else super().read_value()

    def assign(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        """Nothing, or an assignment of the graph."""
        return self if self.reads_by_value() else super().assign(value, *args, **kwargs)


class AbstractExtended(ModelParallelExtended):
    """How variables are created: as on a mesh, but without a value."""

    def _create_variable(self, next_creator: Any, **kwargs: Any) -> tf.Variable:
        owner = self._container_strategy()
        if not tf.executing_eagerly():
            with tf.init_scope():
                return self._create_variable(next_creator, **kwargs)
        like = kwargs.pop("colocate_with", None)
        value = kwargs["initial_value"]
        shape, dtype = spec_of(value, kwargs.get("dtype"))
        path, layers = _private.variable_path(kwargs.get("name")), _private.layers_being_built()
        if math.prod(shape) <= _SMALL:
            kept = {k: kwargs[k] for k in ("trainable", "name", "aggregation") if k in kwargs}
            with tf.device("/CPU:0"):
                variable = next_creator(initial_value=value, dtype=dtype, **kept)
        else:
            variable = ShapedVariable(
                trainable=kwargs.get("trainable"), name=kwargs.get("name"), shape=shape,
                dtype=dtype, distribute_strategy=owner,
            )  # fmt: skip
        owner.made.append(
            Made(path, shape, dtype, bool(kwargs.get("trainable")), layers, variable, like)
        )
        return variable

    def call_for_each_replica(self, fn: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs `fn` once, as the only replica."""
        context = tf.distribute.ReplicaContext(
            self._container_strategy(), replica_id_in_sync_group=0
        )
        with context:
            return fn(*args, **(kwargs or {}))

    def update(
        self, var: Any, fn: Any, args: Any = (), kwargs: Any = None, group: bool = True
    ) -> Any:
        """Calls `fn` on the variable."""
        return fn(var, *args, **(kwargs or {}))

    @property
    def worker_devices(self) -> tuple[str, ...]:
        """The host's processor, where nothing runs."""
        return ("/CPU:0",)


def spec_of(value: Any, dtype: Any) -> tuple[tuple[int, ...], tf.DType]:
    """The shape and dtype of a variable's initial value, without computing it.

    Args:
        value: as of `tf.Variable`: a tensor, an array, or a function that makes one.
        dtype: what was requested, or None.
    """
    if callable(value):
        # Keras's function knows the variable that it initializes.
        held = inspect.getclosurevars(value).nonlocals.get("self")
        if held is not None and hasattr(held, "shape") and dtype is not None:
            return tuple(held.shape), tf.as_dtype(dtype)
        with tf.Graph().as_default():
            made = tf.convert_to_tensor(value(), dtype)
            return tuple(made.shape.as_list()), made.dtype
    found = tf.convert_to_tensor(value, dtype)
    return tuple(found.shape.as_list()), found.dtype
