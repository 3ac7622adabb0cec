"""The operations of a graph: their properties, their order, and their replacement.

Seen with TensorFlow 2.21, watched by `tests/distribute/test_private.py` and
`tests/model_parallel/test_private.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import tensorflow as tf

# Definitions of operations, by name.
from tensorflow.python.framework import op_def_registry

# Which operations of a function TensorFlow runs in creation order.
from tensorflow.python.framework.auto_control_deps import (
    ResourceType as _ResourceType,
)
from tensorflow.python.framework.auto_control_deps import (
    _get_resource_inputs as _resources_of,
)
from tensorflow.python.framework.auto_control_deps import (
    op_is_stateful,
)

# Where the code is that created an operation.
from tensorflow.python.util import tf_stack

from tfaccel.distribute.replacements import replaced

__all__ = [
    "OperationProxy",
    "function_graph",
    "is_ordered_by_trace",
    "is_pure",
    "leave_unordered",
    "library_graphs",
    "only_calls",
    "operations_replaced",
    "resources_of",
    "run_after",
    "without_stack_traces",
]


_CALLS = frozenset(
    {
        *("PartitionedCall", "StatefulPartitionedCall"),
        *("If", "StatelessIf", "Case", "StatelessCase", "While", "StatelessWhile"),
    }
)


def only_calls(operation: str) -> bool:
    """Whether an operation of this type only calls functions, which determine what it does.

    `is_pure` is False for them. Seen in 2.21, watched by tests/distribute/test_own_rows.py.
    """
    return operation in _CALLS


def function_graph(graph: tf.Graph, name: str) -> tf.Graph:
    """The graph of a function that an operation of `graph` calls by name."""
    return graph._get_function(name).graph


def library_graphs(graph: tf.Graph) -> list[tf.Graph]:
    """The graphs of all functions that operations of `graph` may call, directly or not.

    Its library has those of branches, loops and functions within functions too; only TensorFlow's
    oldest kind (`Defun`) has no graph. Public is only a copy of all as a proto, with the constants.
    """
    functions = graph._functions.values()
    return [function.graph for function in functions if hasattr(function, "graph")]


@contextlib.contextmanager
def without_stack_traces() -> Iterator[None]:
    """Inside, operations do not record the lines that created them, a tenth of a trace's time.

    There is no option for it. All have the one of the first call.
    """
    once = tf_stack.extract_stack()
    with replaced(tf_stack, "extract_stack", lambda stacklevel=1: once):
        yield


def is_pure(operation: str) -> bool:
    """Whether an operation of this type is stateless, calls nothing and takes only plain tensors.

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
    """Whether an operation has side effects, but on no variable or other resource.

    When a function has been traced, TensorFlow makes each such operation wait for the previous one
    (`AutomaticControlDependencies`).
    """
    if not op_is_stateful(op) or op._control_flow_context is not None:
        return False
    return next(iter(_resources_of(op)), None) is None


def resources_of(op: tf.Operation) -> list[tuple[tf.Tensor, bool]]:
    """The handles of resources an operation uses, and whether it may change each."""
    if all(tensor.dtype != tf.resource for tensor in op.inputs):
        return []
    return [(handle, kind == _ResourceType.READ_WRITE) for handle, kind in _resources_of(op)]


def leave_unordered(graph: tf.Graph, operations: list[tf.Operation]) -> bool:
    """Exempts operations of a function from TensorFlow's automatic ordering.

    Args:
        graph: of the function being traced.
        operations: of it, with side effects.

    Returns:
        False where TensorFlow does not order automatically, as in a graph that is not a function's.
    """
    manager = getattr(graph, "experimental_acd_manager", None)
    if manager is None:
        return False
    for op in operations:
        manager.run_independently(op)
    return True


def run_after(op: tf.Operation, earlier: tf.Operation) -> None:
    """Makes an existing operation wait for an earlier one."""
    op._add_control_input(earlier)


def operations_replaced(
    replace: Callable[[Any], list[tf.Tensor] | None],
) -> AbstractContextManager[None]:
    """Lets `replace` determine the outputs used for each operation of a graph.

    The operations of a step are only known when a graph creates them, in `_create_op_internal`;
    those of branches and loops are in separate graphs. So the method of the class is replaced while
    a step is traced. A gradient reads the attributes of the operation, which must stay.

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
    """Returned to the creator of an operation that others have replaced.

    Its inputs and attributes are the requested ones, so that the gradient is that of the requested
    operation: TensorFlow then reads its attributes, with separate methods for ints, types and
    bools.

    Args:
        operation: one of those created.
        outputs: the tensors that take the place of its outputs.
        inputs: those of the requested operation, or None where they are the same.
        attrs: likewise, its attributes.
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
        """An attribute; of a rewritten operation, an int, a type or a bool."""
        if not self._attrs:
            return self._operation.get_attr(name)
        value = self._attrs[name]
        content = getattr(value, value.WhichOneof("value"))
        return tf.as_dtype(content) if value.HasField("type") else content

    def __getattr__(self, name: str) -> Any:
        return getattr(self._operation, name)
