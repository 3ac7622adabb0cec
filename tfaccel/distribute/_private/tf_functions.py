"""`tf.function` and the tapes: a function's traces and options, and whether any tape records.

TensorFlow exports how to create a function, but neither how to recreate it nor its options. Seen
with TensorFlow 2.21, watched by `tests/distribute/test_private.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf

# The functions that a graph may call are in the process's context.
from tensorflow.python.eager.context import context

# Whether any tape records, and that none does for a while, which what is computed again for a
# gradient needs; only a tape that one holds is public.
from tensorflow.python.eager.record import could_possibly_record, stop_recording

__all__ = [
    "define_functions",
    "forget_traces",
    "function_like",
    "has_started",
    "is_function",
    "is_recording",
    "stop_recording",
    "traced_graphs",
]


def define_functions(definitions: Iterable[Any]) -> None:
    """Lets this process call the functions of a graph's library.

    `tf.graph_util.import_graph_def` leaves this out when it is called inside a `tf.function`.
    """
    for definition in definitions:
        context().add_function_def(definition)


def forget_traces(function: Any) -> None:
    """Makes a `tf.function` retrace on its next call.

    Its traces hold the variables that it used then, and TensorFlow has no public way to drop them.
    `_clone` makes a function of the same options without traces.
    """
    if hasattr(function, "_clone"):
        vars(function).update(vars(function._clone(None)))


def is_function(fn: Any) -> bool:
    """Whether `fn` is a `tf.function` in which TensorFlow would run the replicas.

    Under XLA on GPUs each replica runs its own, so there is nothing to order.
    """
    return isinstance(fn, tf.types.experimental.PolymorphicFunction) and not fn._jit_compile


def function_like(function: Any, plain: Callable[..., Any]) -> Any:
    """A `tf.function` of `plain` with the options of another."""
    return function._clone(python_function=plain)


def traced_graphs(function: Any) -> list[tf.Graph]:
    """The graphs of the traces that a `tf.function` has; traces none."""
    return [concrete.graph for concrete in function._function_cache.values()]


def is_recording() -> bool:
    """Whether a tape of this thread may be recording."""
    return bool(could_possibly_record())


def has_started() -> bool:
    """Whether TensorFlow has started its devices in this process, which it does at their first use.

    From then on they cannot be configured, and a copy of the process (`os.fork`) has none of the
    threads that they need.
    """
    return bool(context()._initialized)
