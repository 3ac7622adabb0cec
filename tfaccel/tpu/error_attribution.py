"""Error attribution: the operation for which XLA rejects a step."""

from __future__ import annotations

import re

import tensorflow as tf

from tfaccel.tpu.source_location import Origins, trace


class UnsupportedError(Exception):
    """An operation that the TPU compiler does not support; its text is one line."""


def attribute_error(message: str, graph: tf.Graph, origins: Origins) -> UnsupportedError:
    """Parses TensorFlow's error about a step.

    Args:
        message: of its error.
        graph: of the step.
        origins: of the graph.
    """
    node = r"(?:\{\{function_node ([^}]+)\}\})?\{\{node ([^}]+)\}\}"
    match = re.search(rf"on XLA_\w+: (\w+) \(.*?{node}", message, re.DOTALL)
    # XLA does not name the operation for a table, and names a string input `_Arg`.
    on_host = next(filter(_is_for_hosts, graph.get_operations()), None)
    if on_host is not None and (match is None or match[1] == "_Arg"):
        return _error(on_host.type, origins.of(on_host.name, trace(on_host)))
    if match is not None:
        frames = re.findall(r'File "([^"]+)", line (\d+), in (\w+)', message)
        return _error(match[1], origins.of(match[3], frames, match[2] or ""))
    return UnsupportedError(re.sub(r"^Failed getting HLO text: '", "", message).splitlines()[0])


def _is_for_hosts(op: tf.Operation) -> bool:
    """Whether an operation looks something up in a table, or reads strings."""
    return op.type.startswith("LookupTable") or any(t.dtype == tf.string for t in op.inputs)


def _error(operation: str, place: str) -> UnsupportedError:
    return UnsupportedError(
        f"operation {operation} ({place}) cannot be compiled by XLA; move it out of the step "
        "(tf.data runs on the host), or write it with keras.ops"
    )
