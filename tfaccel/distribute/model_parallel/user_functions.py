"""Functions of the user (`tf.function`) that use variables of a mesh outside `Strategy.run`.

A graph of such a function would read both host tensors and the mesh, which TensorFlow rejects. Use
of the mesh is detected when the function is traced: the trace is abandoned, and the call goes

* to the mesh, as if the function had been given to `strategy.run`; or to the host, with copies of
  the variables, where it has an operation that DTensor cannot lay out (a `TensorArray` in a loop);
* where it reads its batches itself, from a dataset or an iterator, to Python: it runs eagerly, and
  the steps that it passes to `strategy.run` run on the mesh. A mesh graph cannot read batches from
  the host.

A `tf.function` is called by the user, so the method `__call__` of its class is replaced, once per
process and permanently; a function that uses no mesh is called as before.
"""

from __future__ import annotations

import functools
import threading
import types
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging
from tensorflow.experimental import dtensor

from tfaccel.distribute import _private, custom_loops
from tfaccel.distribute.model_parallel import host_transfer, phase, unsupported
from tfaccel.distribute.model_parallel.preprocessing import stays_on_host
from tfaccel.distribute.replacements import replaced

MESH, PYTHON, HOST = "mesh", "python", "host"


class _UsesMeshError(BaseException):
    """Ends a trace; TensorFlow must not treat it as an error of the function."""

    def __init__(self, strategy: Any, target: str) -> None:
        super().__init__(target)
        self.strategy, self.target = strategy, target


@dataclass
class _Call:
    """An outermost call of a function, while it is traced.

    Attributes:
        takes_input: whether its arguments include a dataset or an iterator.
        has_host_tensors: whether they include host tensors or arrays.
    """

    takes_input: bool
    has_host_tensors: bool


class _ThreadState(threading.local):
    call: _Call | None = None
    in_python: Any = None  # the strategy of the function that runs as Python


_thread_state = _ThreadState()
_targets: weakref.WeakKeyDictionary[Any, tuple[weakref.ref[Any], str]] = weakref.WeakKeyDictionary()
_compiled: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def install() -> None:
    """Makes functions that use a mesh run there; idempotent."""
    function: Any = type(tf.function(lambda: None))
    original = function.__call__
    if hasattr(original, "_tfaccel_plain"):
        return

    @functools.wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not tf.executing_eagerly() or phase.current() != phase.HOST or _is_keras_function(self):
            return original(self, *args, **kwargs)
        return _traced_or_redirected(self, functools.partial(original, self), args, kwargs)

    call._tfaccel_plain = original  # type: ignore[attr-defined]
    function.__call__ = call


def before_use(strategy: Any, takes_input: bool = False) -> None:
    """Called where a graph on the host is about to use a variable or a batch of `strategy`.

    Args:
        strategy: of a mesh.
        takes_input: whether it takes a batch.
    """
    call = _thread_state.call
    if call is None or tf.executing_eagerly() or phase.current() != phase.HOST:
        return
    takes_input = takes_input or call.takes_input or in_graph_of_dataset()
    raise _UsesMeshError(strategy, PYTHON if takes_input else MESH)


@tf.autograph.experimental.do_not_convert  # which the functions of users around it are
def before_run(strategy: Any) -> None:
    """Called where a graph on the host runs a step on the mesh of `strategy`."""
    if (call := _thread_state.call) is not None and (
        call.has_host_tensors or call.takes_input or in_graph_of_dataset()
    ):
        before_use(strategy)


def in_python(strategy: Any) -> bool:
    """Whether a user's function runs as Python, with its steps traced."""
    return (
        _thread_state.in_python is strategy
        and tf.executing_eagerly()
        and phase.current() == phase.HOST
    )


def compiled(function: Any, strategy: Any) -> Callable[..., Any]:
    """`function` as a `tf.function` under `strategy`, the same one each time."""
    bound = isinstance(function, types.MethodType)
    owner, name = (function.__self__, function.__func__) if bound else (function, None)
    try:
        functions = _compiled.setdefault(owner, {})
    except TypeError:  # not hashable or weakly referenceable: traced each time
        functions = {}
    key = (id(strategy), name)
    if key not in functions:
        reference = weakref.WeakMethod(function) if bound else weakref.ref(function)

        def run(args: Any, kwargs: Any) -> Any:
            return strategy.run(reference(), args=args, kwargs=kwargs)

        functions[key] = tf.function(run)
    traced: Any = functions[key]
    cls: Any = type(traced)
    original = cls.__call__._tfaccel_plain

    def call(*args: Any, **kwargs: Any) -> Any:
        with replaced(_thread_state, "call", None):
            placed = strategy.on_mesh_where_tensors((args, kwargs))
            return _traced_when_built(traced, original(traced, *placed))

    return call


def on_host(results: Any) -> Any:
    """Results of a mesh as host tensors, to be combined with others there."""

    def of(leaf: Any) -> Any:
        if not isinstance(leaf, tf.Tensor) or not dtensor.is_dtensor(leaf):
            return leaf
        if dtensor.fetch_layout(leaf).is_fully_replicated():
            return dtensor.unpack(leaf)[0]
        return tf.convert_to_tensor(host_transfer.gather(leaf))

    return tf.nest.map_structure(of, results)


def _traced_when_built(function: Any, results: Any) -> Any:
    """`on_host(results)` of a function, which is retraced if the call built an optimizer.

    TensorFlow itself does so for a function that creates variables; those of a mesh are created
    outside of it.
    """
    if custom_loops.optimizer_was_built():
        _private.forget_traces(function)
    return on_host(results)


def in_graph_of_dataset() -> bool:
    """Whether a dataset function is being traced, such as the body of a loop over batches."""
    graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    while graph is not None:
        if getattr(graph, "name", "").startswith("Dataset_"):
            return True
        graph = getattr(graph, "outer_graph", None)
    return False


def _traced_or_redirected(
    function: Any, original: Callable[..., Any], args: Any, kwargs: Any
) -> Any:
    if function in _targets:
        reference, target = _targets[function]
        if (strategy := reference()) is not None:
            return _redirected(function, strategy, target, args, kwargs)
    leaves = tf.nest.flatten((args, kwargs), expand_composites=False)
    takes_input = any(_is_input_source(leaf) for leaf in leaves)
    outermost = _Call(takes_input, any(map(_is_host_tensor, leaves)))
    try:
        with replaced(_thread_state, "call", outermost):
            return _traced_when_built(function, original(*args, **kwargs))
    except _UsesMeshError as found:
        strategy, target = found.strategy, found.target
    _targets[function] = weakref.ref(strategy), target
    if target == PYTHON:
        logging.info(
            "tfaccel: %s iterates over its batches, which a graph on a mesh cannot: it runs "
            "eagerly, and only the steps passed to strategy.run run on the mesh.",
            getattr(function.python_function, "__name__", function),
        )
    return _redirected(function, strategy, target, args, kwargs)


def _redirected(function: Any, strategy: Any, target: str, args: Any, kwargs: Any) -> Any:
    strategy.used = True
    reason = stays_on_host((args, kwargs)) if target == MESH else None
    if target == MESH and reason is None:
        try:
            return compiled(function.python_function, strategy)(*args, **kwargs)
        except tf.errors.OpError as error:
            name = getattr(function.python_function, "__name__", str(function))
            if (reason := unsupported.why_not_divided(error, name)) is None:
                raise
        _targets[function] = weakref.ref(strategy), HOST
    if target == HOST or reason is not None:
        return strategy.run_on_host(function, reason, args, kwargs)
    with replaced(_thread_state, "in_python", strategy):
        return function.python_function(*args, **kwargs)


def _is_keras_function(function: Any) -> bool:
    """Whether it is one of Keras's functions for a model's steps."""
    python = getattr(function, "python_function", None)
    module = str(getattr(python, "__module__", ""))
    return isinstance(python, types.FunctionType) and module.startswith("keras.")


def _is_input_source(leaf: Any) -> bool:
    kinds = (tf.data.Dataset, tf.data.Iterator, _private.DatasetIterator)
    return isinstance(leaf, kinds) or hasattr(leaf, "_tfaccel_batches")


def _is_host_tensor(leaf: Any) -> bool:
    if isinstance(leaf, (np.ndarray, np.generic)):
        return True
    return isinstance(leaf, tf.Tensor) and not dtensor.is_dtensor(leaf)
