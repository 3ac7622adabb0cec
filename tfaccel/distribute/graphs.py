"""Runs Python outside of every graph that is being traced."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import tensorflow as tf


def outside_graphs(function: Callable[[], None]) -> None:
    """Calls `function` where variables can be made.

    An `init_scope` leaves a graph, but not what the graph says of making variables, and it stops
    tapes. Another thread is in no graph.

    Args:
        function: may raise.
    """
    if tf.executing_eagerly():
        function()
        return
    with ThreadPoolExecutor(1, "tfaccel-outside") as pool:
        pool.submit(function).result()
