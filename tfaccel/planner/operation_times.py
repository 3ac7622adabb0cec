"""What the operations of a step take on this machine, each measured alone.

A step's operations are run one after the other in a process of their own, on operands of the shapes
that a candidate gives them, and never as a model. Equal ones are measured once, and remembered in
the user's cache directory. Measured are processors; a GPU computes as it is asked for the next
operation, so that times of single ones say little.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import math
import os
import subprocess
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfaccel.planner.operation_costs import Shape
from tfaccel.planner.sharding_propagation import Spread
from tfaccel.planner.step_work import Array, Work
from tfaccel.planner.steps import Operation

_LARGEST = 1024  # elements of an operand whose value an operation may depend on
# Operands that are the shape of a result.
_SHAPES = {
    **dict.fromkeys(("Reshape", "BroadcastTo", "Conv2DBackpropFilter"), 1),
    **dict.fromkeys(("Fill", "Conv2DBackpropInput", "RandomUniform", "RandomStandardNormal"), 0),
    **dict.fromkeys(("StatelessRandomUniformV2", "StatelessRandomNormalV2", "Empty"), 0),
    "DepthwiseConv2dNativeBackpropInput": 0,
    "DepthwiseConv2dNativeBackpropFilter": 1,
}


class OperationTimer:
    """Measures operations, and remembers them.

    Args:
        file: of those that were measured before.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._process: Any = None
        try:
            self._known: dict[str, float | None] = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError):
            self._known = {}

    def seconds(
        self, work: Work, variables: Sequence[tuple[int, ...]], split: Spread, axis: int
    ) -> Array:
        """Seconds of each operation of `work.flops` with the whole processor.

        Not a number where it cannot run alone.

        Args:
            work: a step of a number of rows.
            variables: the shape of each variable.
            split: how a mesh divides the step's values.
            axis: the number of devices that it divides them among.
        """
        shapes = [_divided(s, d, axis) for s, d in zip(work.shapes, split.dims, strict=True)]
        operations = [work.step.operations[i] for i, _ in work.flops]
        signatures = [
            signature(op, shapes, None if op.variable is None else variables[op.variable])
            for op in operations
        ]
        self._measure([one for one in dict.fromkeys(signatures) if one is not None])
        found = [None if one is None else self._known[_key(one)] for one in signatures]
        return np.array([math.nan if s is None else s for s in found])

    def _measure(self, signatures: Sequence[str]) -> None:
        new = [one for one in signatures if _key(one) not in self._known]
        if not new:
            return
        taken = self._answer(new)
        self._known |= {_key(one): s for one, s in zip(new, taken, strict=True)}
        if self._process is None:
            return
        with contextlib.suppress(OSError):  # it is measured again the next time
            self._file.parent.mkdir(parents=True, exist_ok=True)
            unfinished = self._file.with_suffix(f".{os.getpid()}")
            unfinished.write_text(json.dumps(self._known), "utf-8")
            unfinished.replace(self._file)

    def _answer(self, signatures: Sequence[str]) -> list[float | None]:
        """Seconds of each, or None of all where the process was ended, as by a lack of memory."""
        if self._process is None:
            self._process = _start()
            weakref.finalize(self, _end, self._process)
        with contextlib.suppress(OSError):
            self._process.stdin.write(f"[{','.join(signatures)}]\n")
            self._process.stdin.flush()
            if line := self._process.stdout.readline():
                found: list[float | None] = json.loads(line)
                return found
        self._process = None
        return [None] * len(signatures)


def signature(
    op: Operation, shapes: Sequence[Shape], variable: tuple[int, ...] | None
) -> str | None:
    """What an operation's time depends on, as JSON; None where it cannot run alone.

    Args:
        op: of a step.
        shapes: of the step's values.
        variable: the shape of the variable that it reads or changes.
    """
    source = op.source
    if source is None or len(source.inputs) != len(op.inputs):
        return None
    inputs: list[Any] = []
    for k, (tensor, value) in enumerate(zip(source.inputs, op.inputs, strict=True)):
        if tensor.dtype != tf.resource:
            inputs.append(_operand(op, k, tensor, shapes, value))
        elif variable is not None:
            inputs.append(("variable", _held(source), variable, None))
        else:
            return None
    if None in inputs:
        return None
    node = source.node_def
    del node.input[:]
    node.name = ""
    for name in [each for each in node.attr if each.startswith("_")]:  # notes to other parts
        del node.attr[name]
    text = base64.b64encode(node.SerializeToString(deterministic=True)).decode()
    return json.dumps({"node": text, "inputs": inputs})


def _operand(
    op: Operation, k: int, tensor: Any, shapes: Sequence[Shape], value: int
) -> tuple[str, str, Sequence[int], Any] | None:
    shape, known = shapes[value], None
    if _SHAPES.get(op.kind) == k and op.outputs:
        result = shapes[op.outputs[0]]
        known = None if result is None else list(result)
        shape = None if known is None else (len(known),)
    elif op.kind == "UnsortedSegmentSum" and k == 2:
        result = shapes[op.outputs[0]]
        known = None if result is None else [result[0]]
        shape = None if known is None else ()
    elif op.kind == "Sum" and k == 1:
        known = _summed(shapes[op.inputs[0]], shapes[op.outputs[0]], op.attributes)
        shape = None if known is None else (len(known),)
    elif 0 < (tensor.shape.num_elements() or 0) <= _LARGEST:
        static = tf.get_static_value(tensor)
        known = None if static is None else static.ravel().tolist()
    if shape is None:
        return None
    return "operand" if known is None else "constant", tensor.dtype.name, shape, known


def _summed(given: Shape, result: Shape, attributes: Any) -> list[int] | None:
    """Dimensions over which a sum of a shape has another one.

    >>> _summed((8, 4, 2), (4,), {"axes": None})
    [0, 2]
    """
    axes = attributes.get("axes")
    if axes is not None or given is None or result is None:
        return None if axes is None else list(axes)
    if len(given) == len(result):
        return [d for d, (a, b) in enumerate(zip(given, result, strict=True)) if a != b]
    found, left = [], list(result)
    for d, size in enumerate(given):
        if left and left[0] == size:
            left.pop(0)
        else:
            found.append(d)
    return None if left else found


def _divided(shape: Shape, dim: int | None, among: int) -> Shape:
    if shape is None or dim is None:
        return shape
    return (*shape[:dim], max(1, shape[dim] // among), *shape[dim + 1 :])


def _held(source: Any) -> str:
    """The type of a variable's elements."""
    name = next((one for one in ("T", "dtype") if one in source.node_def.attr), None)
    return "float32" if name is None else str(source.get_attr(name).name)


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _start() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tfaccel.planner.operation_trials"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def _end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.stdout.close()
    process.wait()
