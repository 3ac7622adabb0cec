"""The layer and the line of a model that an operation of its step came from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

import tfaccel
from tfaccel.distribute import _private

Frame = tuple[str, str, str]
"""A file, a line's number and a function's name, as a traceback has them."""


class Origins:
    """Maps the nodes of a graph to the code that created them.

    Args:
        graph: of a training step.
        model: whose step it is.
    """

    def __init__(self, graph: tf.Graph, model: keras.Model) -> None:
        self._names = {one.name for one in _private.layers_of(model)} - {model.name}
        self._callers = callers(graph)

    def of(self, node: str, frames: Iterable[Frame] = (), function: str = "") -> str:
        """The origin of a node: its layer and its line, as far as they are known.

        Args:
            node: its name.
            frames: of its traceback, outermost first.
            function: that contains it, if it is not in the graph itself.
        """
        caller = self._callers.get(function)
        layer = self._layer(node) or (self._layer(caller.name) if caller is not None else None)
        place = f"layer {layer!r}" if layer else f"node {node!r}"
        return place + (own_line(frames) or (own_line(trace(caller)) if caller is not None else ""))

    def _layer(self, node: str) -> str | None:
        """The innermost layer whose scope contains a node.

        Keras adds a number to a scope that it enters again.
        """
        for part in reversed(node.split("/")[:-1]):
            for candidate in (part, re.sub(r"_\d+$", "", part)):
                if candidate in self._names:
                    return candidate
        return None


def callers(graph: tf.Graph) -> dict[str, tf.Operation]:
    """For each function that `graph` calls, the calling operation of `graph`."""
    calls: dict[str, tf.Operation] = {}
    for op in graph.get_operations():
        for name in _called(op.node_def):
            calls.setdefault(name, op)
    bodies = {f.signature.name: f.node_def for f in graph.as_graph_def().library.function}
    waiting = list(calls)
    while waiting:
        outer = waiting.pop()
        for node in bodies.get(outer, ()):
            for name in _called(node):
                if name not in calls:
                    calls[name] = calls[outer]
                    waiting.append(name)
    return calls


def _called(node: Any) -> Iterator[str]:
    for value in node.attr.values():
        if value.HasField("func"):
            yield value.func.name
        yield from (one.name for one in value.list.func)


def trace(op: tf.Operation) -> list[Frame]:
    """The frames in which an operation was created."""
    return [(frame.filename, str(frame.lineno), frame.name) for frame in op.traceback or ()]


_HOMES = tuple(f"{Path(str(one.__file__)).parent}/".lstrip("/") for one in (tf, keras, tfaccel))
_LAYERS = re.compile(re.escape(_HOMES[1]) + r"src/layers/\w+/")  # not layers/layer.py, under all


def own_line(frames: Iterable[Frame]) -> str:
    """The innermost line that is not a library's; else that of the Keras layer; else nothing.

    Our callers create no operations: frames outside our own do not count.

    >>> own_line([("/home/me/train.py", "7", "build"), (tf.__file__, "1", "f")])
    ', train.py line 7'
    """
    of_user = of_keras = ""
    for file, number, _ in frames:
        path = file.lstrip("/")  # which TensorFlow's messages leave out
        line = f", {Path(file).name} line {number}"
        if path.startswith(_HOMES[-1]):
            of_user = of_keras = ""
        elif _LAYERS.match(path):
            of_keras = line
        elif not path.startswith((*_HOMES, "<")):
            of_user = line
    return of_user or of_keras
