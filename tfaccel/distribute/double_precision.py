"""A traced step in double precision, to distinguish errors from rounding.

Two runs of a step in float32 may be far apart and both right: thirty normalizations in a row turn
an error in the seventh digit into one in the second. Which of them is farther from the step in
float64 can be decided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from tfaccel.distribute import _private

_SINGLE, _DOUBLE = tf.float32.as_datatype_enum, tf.float64.as_datatype_enum
_SUFFIX = "/double"  # of functions: names are unique in a process


class DoublePrecision:
    """A function in which every float32 tensor and variable is float64.

    Args:
        function: concrete; it is not changed, nor are its variables.
    """

    def __init__(self, function: Any) -> None:
        self._graph = function.graph
        self._graph_def = widened(self._graph.as_graph_def())
        _private.define_functions(self._graph_def.library.function)
        self._arguments = len(function.inputs) - len(function.captured_inputs)
        self._placeholders = [tensor.name for tensor in function.inputs]
        self._variables = {id(v.handle): _wide_copy(v) for v in self._graph.variables}
        self._started = {key: copy.numpy() for key, copy in self._variables.items()}
        self._moved: Callable[[tf.Tensor], tf.Tensor] = tf.identity
        self._captured = [
            self._variables[id(each)].handle if id(each) in self._variables else _wide(each)
            for each in function.captured_inputs
        ]
        self._call = tf.function(self._imported, autograph=False)

    def restart(self, moved: Callable[[tf.Tensor], tf.Tensor] = tf.identity) -> None:
        """Makes the next call start from the variables' current values.

        Args:
            moved: returns a replacement for a float64 value of a variable or an argument.
        """
        self._moved = moved
        for variable in self._graph.variables:
            key, start = id(variable.handle), self._start(variable.read_value())
            self._variables[key].assign(start)
            self._started[key] = start.numpy()

    def __call__(self, arguments: Iterable[Any]) -> list[tf.Tensor]:
        """Calls it.

        Args:
            arguments: the tensors of its arguments, flat.

        Returns:
            Its outputs, flat.

        Raises:
            ValueError, tf.errors.OpError: an operation does not support float64, or the arguments
                do not match.
        """
        wide = [self._start(each) for each in arguments]
        if len(wide) != self._arguments:
            raise ValueError(f"{len(wide)} arguments; expected {self._arguments}")
        return list(self._call(wide))

    def value_of(self, variable: tf.Variable) -> np.ndarray | None:
        """The value of a variable after the calls; None for one that the function does not have.

        For one that was moved, it is its own value plus the change made by the calls.
        """
        copy = self._variables.get(id(variable.handle))
        if copy is None:
            return None
        if copy.dtype != tf.float64:
            return np.asarray(copy)
        return np.asarray(_wide(variable.read_value()) + copy - self._started[id(variable.handle)])

    def _start(self, value: Any) -> tf.Tensor:
        tensor = _wide(value)
        return self._moved(tensor) if tensor.dtype == tf.float64 else tensor

    def _imported(self, arguments: list[tf.Tensor]) -> list[tf.Tensor]:
        outputs = [tensor.name for tensor in self._graph.outputs]
        effects = [op.name for op in self._graph.control_outputs]
        graph: Any = tf.compat.v1.get_default_graph()
        inputs = [graph.capture(each) for each in (*arguments, *self._captured)]
        imported = tf.graph_util.import_graph_def(
            self._graph_def,
            dict(zip(self._placeholders, inputs, strict=True)),
            return_elements=[*outputs, *effects],
            name="double",
        )
        with tf.control_dependencies(imported[len(outputs) :]):
            return [tf.identity(tensor) for tensor in imported[: len(outputs)]]


def widened(graph_def: Any) -> Any:
    """A graph in which every float32 is float64, including its functions.

    >>> with tf.Graph().as_default() as graph:
    ...     _ = tf.constant(0.5) + tf.compat.v1.placeholder(tf.float32, name="x")
    >>> [node.op for node in widened(graph.as_graph_def()).node if _SINGLE in
    ...  [value.type for value in node.attr.values()]]
    []
    """
    _widen(graph_def.node)
    for function in graph_def.library.function:
        function.signature.name += _SUFFIX
        for argument in (*function.signature.input_arg, *function.signature.output_arg):
            argument.type = _widened_type(argument.type)
        _widen(function.node_def, output=":y")
    return graph_def


def _widen(nodes: Any, output: str = "") -> None:
    """Widens nodes in place; `output` is the part of an output's name after the node's."""
    for node in list(nodes):
        if node.op == "Bitcast" and node.attr["T"].type == _SINGLE:  # has as many bits
            cast = nodes.add(name=f"{node.name}/single", op="Cast", input=[node.input[0]])
            cast.attr["SrcT"].type, cast.attr["DstT"].type = _DOUBLE, _SINGLE
            node.input[0] = f"{cast.name}{output}:0"
            continue
        for value in node.attr.values():
            _widen_attribute(value)


def _widen_attribute(value: Any) -> None:
    """Widens a type, types, a constant; functions get their names in the widened library."""
    if value.HasField("type"):
        value.type = _widened_type(value.type)
    elif value.HasField("list"):
        value.list.type[:] = map(_widened_type, value.list.type)
        for function in value.list.func:
            function.name += _SUFFIX
    elif value.HasField("func"):
        value.func.name += _SUFFIX
    elif value.HasField("tensor") and value.tensor.dtype == _SINGLE:
        array = tf.make_ndarray(value.tensor).astype("float64")
        value.tensor.CopyFrom(tf.make_tensor_proto(array))


def _widened_type(kind: int) -> int:
    return _DOUBLE if kind == _SINGLE else kind


def _wide(value: Any) -> Any:
    tensor = tf.convert_to_tensor(value)
    return tf.cast(tensor, tf.float64) if tensor.dtype == tf.float32 else tensor


def _wide_copy(variable: tf.Variable) -> tf.Variable:
    return tf.Variable(_wide(variable.read_value()), trainable=False)
