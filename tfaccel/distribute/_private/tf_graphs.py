"""The operations of a graph: what they are, their order, and what is used in their place.

Seen with TensorFlow 2.21, watched by `tests/distribute/test_private.py` and
`tests/model_parallel/test_private.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import tensorflow as tf

# What operations are, by their names.
from tensorflow.python.framework import op_def_registry

# Which operations of a function TensorFlow runs in the order of their making.
from tensorflow.python.framework.auto_control_deps import (
    ResourceType as _ResourceType,
)
from tensorflow.python.framework.auto_control_deps import (
    _get_resource_inputs as _resources_of,
)
from tensorflow.python.framework.auto_control_deps import (
    op_is_stateful,
)

from tfaccel.distribute.replacements import replaced

__all__ = [
    "OperationProxy",
    "function_graph",
    "is_ordered_by_trace",
    "is_pure",
    "leave_unordered",
    "only_calls",
    "operations_replaced",
    "resources_of",
    "run_after",
]


_CALLS = frozenset(
    {
        *("PartitionedCall", "StatefulPartitionedCall"),
        *("If", "StatelessIf", "Case", "StatelessCase", "While", "StatelessWhile"),
    }
)


def only_calls(operation: str) -> bool:
    """Whether an operation of this type only calls functions: what it does stands in those.

    `is_pure` is False for them. Seen in 2.21, watched by tests/distribute/test_own_rows.py.
    """
    return operation in _CALLS


def function_graph(graph: tf.Graph, name: str) -> tf.Graph:
    """The graph of a function that an operation of `graph` calls by its name."""
    return graph._get_function(name).graph


def is_pure(operation: str) -> bool:
    """Whether an operation of this type has no state, calls nothing and takes plain tensors alone.

    TensorFlow exposes this nowhere else: seen in 2.21, watched by
    tests/model_parallel/test_private.py.
    """
    known = op_def_registry.get(operation)
    if known is None or known.is_stateful:
        return False
    handles = (tf.resource.as_datatype_enum, tf.variant.as_datatype_enum)
    if any(each.type in handles for each in (*known.input_arg, *known.output_arg)):
        return False
    return not any(each.type in ("func", "list(func)") for each in known.attr)


def is_ordered_by_trace(op: tf.Operation) -> bool:
    """Whether an operation has side effects, and on no variable or other resource.

    When a function is traced to its end TensorFlow lets each such operation wait for the one that
    was made before it (`AutomaticControlDependencies`).
    """
    if not op_is_stateful(op) or op._control_flow_context is not None:
        return False
    return next(iter(_resources_of(op)), None) is None


def resources_of(op: tf.Operation) -> list[tuple[tf.Tensor, bool]]:
    """The handles of what an operation uses, and whether it may change each."""
    if all(tensor.dtype != tf.resource for tensor in op.inputs):
        return []
    return [(handle, kind == _ResourceType.READ_WRITE) for handle, kind in _resources_of(op)]


def leave_unordered(graph: tf.Graph, operations: list[tf.Operation]) -> bool:
    """Lets operations of a function run, and wait for none by themselves.

    Args:
        graph: of the function, which is being traced.
        operations: of it, with side effects.

    Returns:
        False where TensorFlow orders nothing by itself, as in a graph that is not a function's.
    """
    manager = getattr(graph, "experimental_acd_manager", None)
    if manager is None:
        return False
    for op in operations:
        manager.run_independently(op)
    return True


def run_after(op: tf.Operation, earlier: tf.Operation) -> None:
    """Lets an operation that is made already wait for an earlier one."""
    op._add_control_input(earlier)


def operations_replaced(
    replace: Callable[[Any], list[tf.Tensor] | None],
) -> AbstractContextManager[None]:
    """Lets `replace` determine what is used in place of the outputs of each operation of a graph.

    Which operations a step is made of is known where a graph makes them, in `_create_op_internal`,
    and nowhere before; those of branches and loops are in graphs of their own. So the method of the
    class is replaced while a step is traced. A gradient asks the operation for its attributes,
    which must stay.

    Args:
        replace: called with each operation; returns tensors, or None to leave it.
    """
    graph: Any = tf.Graph
    plain = graph._create_op_internal

    def create(self: Any, *args: Any, **kwargs: Any) -> Any:
        op = plain(self, *args, **kwargs)
        with self.as_default():
            outputs = replace(op)
        return op if outputs is None else OperationProxy(op, outputs)

    return replaced(graph, "_create_op_internal", create)


class OperationProxy:
    """What the maker of an operation gets, where others were made in its place.

    Its inputs and attributes are those that were requested, so that the gradient is the one of the
    operation that was requested: TensorFlow asks the operation for its attributes then, in methods
    of its own for a number, a type and whether.

    Args:
        operation: one of those that were made.
        outputs: the tensors that take the place of its outputs.
        inputs: those of the operation that was requested, or None where they are the same.
        attrs: the same of its attributes.
    """

    def __init__(
        self, operation: Any, outputs: list[Any], inputs: Any = None, attrs: Any = None
    ) -> None:
        self._operation = operation
        self.outputs = outputs
        self.inputs = operation.inputs if inputs is None else tuple(inputs)
        self._attrs = attrs

    def _get_attr_int(self, name: str) -> int:
        return int(self._attrs[name].i if self._attrs else self._operation._get_attr_int(name))

    def _get_attr_bool(self, name: str) -> bool:
        return bool(self._attrs[name].b if self._attrs else self._operation._get_attr_bool(name))

    def _get_attr_type(self, name: str) -> tf.DType:
        if self._attrs:
            return tf.as_dtype(self._attrs[name].type)
        return self._operation._get_attr_type(name)

    def get_attr(self, name: str) -> Any:
        """An attribute; of one that was rewritten, a number, a type or whether."""
        if not self._attrs:
            return self._operation.get_attr(name)
        value = self._attrs[name]
        content = getattr(value, value.WhichOneof("value"))
        return tf.as_dtype(content) if value.HasField("type") else content

    def __getattr__(self, name: str) -> Any:
        return getattr(self._operation, name)
