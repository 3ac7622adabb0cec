"""Places the host tensors that a traced step captures on the mesh.

A layer may hold a plain tensor (the mean of a Normalization layer). A step's graph captures it as
one more input, and DTensor requires all inputs of a graph on its mesh.
"""

from __future__ import annotations

import functools
from typing import Any

import tensorflow as tf
from tensorflow.experimental import dtensor

from tfaccel.distribute.mixins import mix_in
from tfaccel.distribute.model_parallel import host_transfer, rewrites
from tfaccel.distribute.replacements import replaced

_LARGEST_BROADCAST = 16  # elements of an integer tensor that DTensor itself copies to each device


class CapturesOnMesh:
    """Mixin for the graph of a step: host tensors it captures are replicated on the mesh."""

    _strategy: Any
    _captured: dict[int, tuple[Any, tf.Tensor]]
    _laying_out = False

    def capture(self, tensor: Any, name: Any = None, shape: Any = None) -> Any:
        """Captures `tensor`, or its copy on the mesh."""
        if hasattr(tensor, "numpy") and _is_large(tensor):
            if id(tensor) not in self._captured:
                # The tensor is kept alive with its copy, so that its id is not reused.
                self._captured[id(tensor)] = (tensor, self._to_mesh(tensor))
            tensor = self._captured[id(tensor)][1]
        return super().capture(tensor, name, shape)  # type: ignore[misc]

    def _create_op_internal(self, op_type: str, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if op_type == "ScatterNd":
            inputs, kwargs = _with_int32_indices(inputs, kwargs)
        create = functools.partial(super()._create_op_internal, op_type)  # type: ignore[misc]
        rule = rewrites.REWRITES.get(op_type)
        if op_type in self._strategy.replicated_operations and not self._laying_out:
            rule = self._of_whole
        if rule is None:
            return self._strategy.random_override.apply(create(inputs, *args, **kwargs))

        def made(inputs: Any) -> Any:
            operation = create(inputs, *args, **kwargs)
            kwargs["name"] = None  # already used: a second one finds its own
            return operation

        return rule(rewrites.Operation(made, inputs, kwargs["attrs"], self._strategy))

    def _of_whole(self, operation: Any) -> Any:
        # Laying operands out creates operations too.
        with replaced(self, "_laying_out", True):
            return rewrites.replicate_operands(operation)

    def _to_mesh(self, tensor: tf.Tensor) -> tf.Tensor:
        with tf.init_scope():
            if dtensor.is_dtensor(tensor):
                return tensor
            return host_transfer.scatter(tensor, (None,) * tensor.shape.rank, self._strategy.mesh)


def _with_int32_indices(inputs: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The arguments of a ScatterNd with its indices and shape as int32.

    DTensor gives every device an int32 shape, whatever the type of the indices (int64 in a
    confusion matrix), and the operation then fails.
    """
    indices, updates, shape = inputs
    kwargs["attrs"]["Tindices"].type = tf.int32.as_datatype_enum
    kwargs["input_types"] = [tf.int32, updates.dtype, tf.int32]
    return [tf.cast(indices, tf.int32), updates, tf.cast(shape, tf.int32)], kwargs


def _is_large(tensor: tf.Tensor) -> bool:
    """Whether DTensor rejects it as an input of a graph; small ones it copies to devices itself."""
    if tensor.dtype in (tf.resource, tf.variant, tf.string) or not tensor.shape.rank:
        return False
    if tensor.dtype in (tf.int32, tf.int64):
        return bool(tensor.shape.num_elements() > _LARGEST_BROADCAST)
    return True


def capture_on_mesh(strategy: Any) -> None:
    """Makes the graph that is being traced, if any, place what it captures on the mesh."""
    if tf.executing_eagerly():
        return
    graph = tf.compat.v1.get_default_graph()
    if not hasattr(graph, "capture") or isinstance(graph, CapturesOnMesh):
        return
    mix_in(graph, CapturesOnMesh)
    graph._strategy, graph._captured = strategy, {}
