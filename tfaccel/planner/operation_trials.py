"""Runs single operations of a step on this machine, and times them: a process of its own.

    python -m tfaccel.planner.operation_trials

reads lines of JSON, each a list of signatures, and answers each with a line: the seconds of each
operation, or null for one that does not run alone. An operation gets its operands as arguments, so
that TensorFlow computes none of it beforehand.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

_SECONDS = 0.03  # of an operation, at least
_LEAST, _MOST = 3, 200  # runs of it
_TOO_LARGE = 2**31  # bytes of its operands


def main() -> None:
    """Answers until its input ends."""
    for line in sys.stdin:
        print(json.dumps(measure(json.loads(line))), flush=True)


def measure(signatures: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """Seconds of each operation, above those of one that does nothing.

    Args:
        signatures: from `operation_times.signature`.
    """
    with tf.device("CPU:0"):
        nothing = tf.function(lambda x: tf.identity(x))
        scalar = tf.zeros(())
        call_s = _seconds(lambda: nothing(scalar))
        return [_measured(one, call_s) for one in signatures]


def _measured(signature: Mapping[str, Any], call_s: float) -> float | None:
    sizes = (math.prod(shape) for _, _, shape, _ in signature["inputs"])
    if 4 * sum(sizes) > _TOO_LARGE:
        return None
    with contextlib.suppress(Exception):
        run, operands = _function(signature)
        return max(0.0, _seconds(lambda: run(*operands)) - call_s)
    return None


def _function(signature: Mapping[str, Any]) -> tuple[Callable[..., Any], list[Any]]:
    """A function of one operation, and its operands."""
    node = tf.compat.v1.NodeDef.FromString(base64.b64decode(signature["node"]))
    node.name = "operation"
    operands, variables, constants = [], {}, {}
    for k, (kind, dtype, shape, value) in enumerate(signature["inputs"]):
        if kind == "variable":
            variables[k] = tf.Variable(tf.zeros(shape, dtype), trainable=False)
        elif kind == "constant":
            constants[k] = np.array(value, tf.as_dtype(dtype).as_numpy_dtype).reshape(shape)
        else:
            operands.append(_operand(dtype, shape))

    def body(*given: Any) -> Any:
        here: Any = tf.compat.v1.get_default_graph()
        rest, inputs = list(given), {}
        graph = tf.compat.v1.GraphDef()
        for k in range(len(signature["inputs"])):
            if k in variables:
                inputs[f"input{k}"] = here.capture(variables[k].handle)
            elif k in constants:
                inputs[f"input{k}"] = tf.constant(constants[k])
            else:
                inputs[f"input{k}"] = rest.pop(0)
            node.input.append(f"input{k}")
            graph.node.append(
                tf.compat.v1.NodeDef(name=f"input{k}", op="Placeholder",
                                     attr={"dtype": _type(inputs[f"input{k}"].dtype)})
            )  # fmt: skip
        graph.node.append(node)
        (made,) = tf.graph_util.import_graph_def(
            graph, {f"{name}:0": t for name, t in inputs.items()}, ["operation"]
        )
        if made.outputs:
            return list(made.outputs)
        with tf.control_dependencies([made]):
            return tf.constant(0.0)

    return tf.function(body, autograph=False), operands


def _type(dtype: Any) -> Any:
    return tf.compat.v1.AttrValue(type=tf.as_dtype(dtype).as_datatype_enum)


def _operand(dtype: str, shape: Sequence[int]) -> tf.Tensor:
    kind = tf.as_dtype(dtype)
    if kind.is_floating:
        return tf.cast(tf.random.uniform(shape, 0.1, 1.0), kind)
    return tf.zeros(shape, kind)


def _seconds(run: Callable[[], Any]) -> float:
    """The shortest of several runs, after a warm-up."""
    run()
    taken: list[float] = []
    end = time.perf_counter() + _SECONDS
    while len(taken) < _LEAST or (time.perf_counter() < end and len(taken) < _MOST):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return min(taken)


if __name__ == "__main__":
    main()
