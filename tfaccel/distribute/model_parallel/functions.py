"""Functions of the user's own (`tf.function`) that use variables of a mesh outside `Strategy.run`.

A graph of such a function would read both host tensors and the mesh, which TensorFlow refuses. Who
uses the mesh is seen when the function is traced: the trace is given up, and the call goes

* to the mesh, as if the function had been given to `strategy.run`; or
* where it takes its batches itself, from a dataset or an iterator, to Python: it runs as it is
  written, and the steps that it gives to `strategy.run` run on the mesh. No graph of a mesh can
  take batches from the host.

A `tf.function` is called by the user, so the method `__call__` of its class is replaced, once in a
process and for good; a function that uses no mesh is called as before.
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

from tfaccel.distribute import _private
from tfaccel.distribute.model_parallel import host, stage

MESH, PYTHON = "mesh", "python"


class _UsesMeshError(BaseException):
    """Ends a trace; nothing of TensorFlow's may take it for an error of the function."""

    def __init__(self, strategy: Any, way: str) -> None:
        super().__init__(way)
        self.strategy, self.way = strategy, way


@dataclass
class _Call:
    """An outermost call of a function, while it is traced.

    Attributes:
        feeds: whether it was given a dataset or an iterator.
        host: whether it was given tensors of the host, or arrays.
    """

    feeds: bool
    host: bool


class _Here(threading.local):
    call: _Call | None = None
    in_python: Any = None  # the strategy of the function that runs as Python


_here = _Here()
_ways: weakref.WeakKeyDictionary[Any, tuple[weakref.ref[Any], str]] = weakref.WeakKeyDictionary()
_compiled: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def install() -> None:
    """Makes functions that use a mesh run there; doing it twice is doing it once."""
    function: Any = type(tf.function(lambda: None))
    plain = function.__call__
    if hasattr(plain, "_tfaccel_plain"):
        return

    @functools.wraps(plain)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not tf.executing_eagerly() or stage.current() != stage.HOST or _is_kerass(self):
            return plain(self, *args, **kwargs)
        return _called(self, functools.partial(plain, self), args, kwargs)

    call._tfaccel_plain = plain  # type: ignore[attr-defined]
    function.__call__ = call


def uses(strategy: Any, feeds: bool = False) -> None:
    """Called where a graph on the host is about to use a variable or a batch of `strategy`.

    Args:
        strategy: of a mesh.
        feeds: whether it takes a batch.
    """
    call = _here.call
    if call is None or tf.executing_eagerly() or stage.current() != stage.HOST:
        return
    feeds = feeds or call.feeds or in_graph_of_dataset()
    raise _UsesMeshError(strategy, PYTHON if feeds else MESH)


def runs(strategy: Any) -> None:
    """Called where a graph on the host runs a step on the mesh of `strategy`."""
    if (call := _here.call) is not None and (call.host or call.feeds or in_graph_of_dataset()):
        uses(strategy)


def in_python(strategy: Any) -> bool:
    """Whether we are in a function of the user's that runs as Python, whose steps are traced."""
    return _here.in_python is strategy and tf.executing_eagerly() and stage.current() == stage.HOST


def compiled(function: Any, strategy: Any) -> Callable[..., Any]:
    """`function` as a `tf.function` under `strategy`, the same one each time."""
    bound = isinstance(function, types.MethodType)
    owner, name = (function.__self__, function.__func__) if bound else (function, None)
    try:
        found = _compiled.setdefault(owner, {})
    except TypeError:  # nothing can be said of it: traced each time
        found = {}
    key = (id(strategy), name)
    if key not in found:
        held = weakref.WeakMethod(function) if bound else weakref.ref(function)

        def run(args: Any, kwargs: Any) -> Any:
            return strategy.run(held(), args=args, kwargs=kwargs)

        found[key] = tf.function(run)
    made: Any = found[key]
    cls: Any = type(made)
    plain = cls.__call__._tfaccel_plain

    def call(*args: Any, **kwargs: Any) -> Any:
        before, _here.call = _here.call, None
        try:
            placed = strategy.on_mesh_where_tensors((args, kwargs))
            return on_host(plain(made, *placed))
        finally:
            _here.call = before

    return call


def on_host(results: Any) -> Any:
    """Results of a mesh as tensors of the host, which go with all that is there."""

    def of(leaf: Any) -> Any:
        if not isinstance(leaf, tf.Tensor) or not dtensor.is_dtensor(leaf):
            return leaf
        if dtensor.fetch_layout(leaf).is_fully_replicated():
            return dtensor.unpack(leaf)[0]
        return tf.convert_to_tensor(host.gather(leaf))

    return tf.nest.map_structure(of, results)


def in_graph_of_dataset() -> bool:
    """Whether a function of a dataset is being traced, as the body of a loop over batches is."""
    graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    while graph is not None:
        if getattr(graph, "name", "").startswith("Dataset_"):
            return True
        graph = getattr(graph, "outer_graph", None)
    return False


def _called(function: Any, plain: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    if function in _ways:
        held, way = _ways[function]
        if (strategy := held()) is not None:
            return _as_found(function, strategy, way, args, kwargs)
    leaves = tf.nest.flatten((args, kwargs), expand_composites=False)
    feeds = any(_is_feed(leaf) for leaf in leaves)
    before, _here.call = _here.call, _Call(feeds, any(map(_is_of_host, leaves)))
    try:
        return on_host(plain(*args, **kwargs))
    except _UsesMeshError as found:
        strategy, way = found.strategy, found.way
    finally:
        _here.call = before
    _ways[function] = weakref.ref(strategy), way
    if way == PYTHON:
        logging.info(
            "tfaccel: %s takes its batches itself, which a graph on a mesh cannot: it runs as "
            "Python, and on the mesh run the steps that it gives to strategy.run.",
            getattr(function.python_function, "__name__", function),
        )
    return _as_found(function, strategy, way, args, kwargs)


def _as_found(function: Any, strategy: Any, way: str, args: Any, kwargs: Any) -> Any:
    strategy.used = True
    if way == MESH:
        return compiled(function.python_function, strategy)(*args, **kwargs)
    before, _here.in_python = _here.in_python, strategy
    try:
        return function.python_function(*args, **kwargs)
    finally:
        _here.in_python = before


def _is_kerass(function: Any) -> bool:
    """Whether it is one of the functions that Keras makes of a model's steps."""
    python = getattr(function, "python_function", None)
    module = str(getattr(python, "__module__", ""))
    return isinstance(python, types.FunctionType) and module.startswith("keras.")


def _is_feed(leaf: Any) -> bool:
    kinds = (tf.data.Dataset, tf.data.Iterator, _private.DatasetIterator)
    return isinstance(leaf, kinds) or hasattr(leaf, "_tfaccel_feed")


def _is_of_host(leaf: Any) -> bool:
    if isinstance(leaf, (np.ndarray, np.generic)):
        return True
    return isinstance(leaf, tf.Tensor) and not dtensor.is_dtensor(leaf)
