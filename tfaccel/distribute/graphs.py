"""Runs Python outside of any graph being traced."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import tensorflow as tf


def outside_graphs(function: Callable[[], None]) -> None:
    """Calls `function` where variables can be created.

    An `init_scope` leaves a graph, but keeps its variable creators, and it stops tapes. Another
    thread is not in any graph.

    Args:
        function: may raise.
    """
    if tf.executing_eagerly():
        function()
        return
    with ThreadPoolExecutor(1, "tfaccel-outside") as pool:
        pool.submit(function).result()
