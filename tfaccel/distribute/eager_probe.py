"""Runs a small function eagerly on one device, while a step is being traced.

What a user's loss or layer computes cannot be inspected, but it can be probed on a few rows. A
separate thread has no strategy, graph, gradient tape, step or Keras scope.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf


class ProbeResult(NamedTuple):
    """The result of a probe.

    Attributes:
        value: what the function returned; None after an error.
        error: the exception it raised, or None.
    """

    value: Any
    error: BaseException | None


def probe(function: Callable[[], Any]) -> ProbeResult:
    """Calls `function` on the host, as a script without a strategy would."""
    result = ProbeResult(None, None)

    def body() -> None:
        nonlocal result
        try:
            with tf.device("/CPU:0"):
                result = ProbeResult(function(), None)
        except Exception as error:
            result = ProbeResult(None, error)

    thread = threading.Thread(target=body, name="tfaccel-probe")
    thread.start()
    thread.join()
    return result


def concrete_shape(shape: Any, rows: int, most: int | None = None) -> list[int]:
    """A static shape of `rows` rows for a tensor of a trace.

    Args:
        shape: of a batch's tensor, rows first.
        rows: how many to take.
        most: sizes above this become 4, except the last one; None keeps them. Unknown ones become
            5.

    >>> concrete_shape(tf.TensorShape([None, 512, 512, 20]), 6, 16), concrete_shape([8, None], 2)
    ([6, 4, 4, 20], [2, 5])
    """
    rest = [5 if size is None else int(size) for size in tf.TensorShape(shape)[1:]]
    if most is not None:
        rest = [4 if size > most else size for size in rest[:-1]] + rest[-1:]
    return [rows, *rest]
