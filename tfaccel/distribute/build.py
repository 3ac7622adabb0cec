"""Creates all variables of a model's steps before the steps run.

On one device Keras lets the first step create missing variables: of layers without a shape, slots
of optimizers, metrics that infer their shape from data. In replicas, or on a mesh, none can be
created in a step. So a step is traced once beforehand, over the shapes of a batch, in a graph that
is discarded: the variables stay, and no value changes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from tfaccel.distribute import _private, step
from tfaccel.distribute.batch_sharding import is_absent
from tfaccel.distribute.graphs import outside_graphs
from tfaccel.distribute.mixins import mix_in
from tfaccel.distribute.replica_attributes import ReplicaAttributes

STEPS = {
    **dict.fromkeys(("fit", "train_on_batch"), "train"),
    **dict.fromkeys(("evaluate", "test_on_batch"), "test"),
    **dict.fromkeys(("predict", "predict_on_batch"), "predict"),
}
_TRACE = "tfaccel_trace"
_CREATION_ARGUMENTS = (
    "trainable",
    "name",
    "dtype",
    "aggregation",
    "synchronization",
    "shape",
    "constraint",
)


class FromSteps(_private.BuildsFromSteps):
    """Mixin for a model: its own steps create its variables, where it has any."""

    _tfaccel_strategy: Any
    _tfaccel_spec: Any = None

    def build_for(self, method: str, batch: Any, failed: bool) -> bool:
        """As `_private.BuildsFromSteps`."""
        kind = STEPS.get(method, "")
        if not failed and not _is_custom(self, kind):
            return False
        if method in ("train_on_batch", "test_on_batch"):
            return trace_step(self, kind, specs(batch), self._tfaccel_strategy)
        return not failed or trace_step(self, kind, self._tfaccel_spec, self._tfaccel_strategy)


def build_from_steps(model: Any, strategy: Any, spec: Any = None) -> None:
    """Makes Keras leave building `model` to `trace_step`, where it has its own steps.

    Args:
        model: whose variables belong to `strategy`.
        strategy: created by tfaccel.
        spec: of the batches that a method of `model` has requested.
    """
    object.__setattr__(model, "_tfaccel_strategy", strategy)
    if spec is not None:
        object.__setattr__(model, "_tfaccel_spec", spec)
    mix_in(model, FromSteps)


def for_caller(caller: _private.Caller, spec: Any, strategy: Any) -> None:
    """Creates the variables that the method of `caller` needs, in place of Keras.

    Args:
        caller: requests its data.
        spec: of a batch.
        strategy: created by tfaccel, to which the variables of its model belong.
    """
    build_from_steps(caller.model, strategy, spec)
    validates = caller.validates and caller.method == "fit"
    for_method(caller.model, "evaluate" if validates else caller.method, spec, strategy)


def for_method(model: Any, method: str, spec: Any, strategy: Any) -> None:
    """Creates the variables that a method of `model` needs and Keras does not create.

    Args:
        model: a Keras model whose variables belong to `strategy`.
        method: `fit`, `evaluate`, `predict`, or one of `*_on_batch`.
        spec: of a batch.
        strategy: created by tfaccel.
    """
    kind = STEPS[method]
    if _is_custom(model, kind) or (kind == "predict" and not _is_built(model)):
        trace_step(model, kind, spec, strategy)


def trace_step(model: Any, kind: str, spec: Any, strategy: Any) -> bool:
    """Traces a step of `model` over a batch of `spec`, unless Keras has created its function.

    Args:
        model: a Keras model whose variables belong to `strategy`.
        kind: of step: ``"train"``, ``"test"`` or ``"predict"``.
        spec: a nest of `tf.TypeSpec`s.
        strategy: created by tfaccel.

    Returns:
        Whether its variables exist.
    """
    if kind != "predict" and getattr(model, f"{kind}_function", None) is not None:
        return True
    run = _private.plain_step(model, f"{kind}_step")
    attributes = ReplicaAttributes([model, *_private.layers_of(model)])
    try:
        outside_graphs(lambda: trace(run, spec, strategy))
    except Exception as error:
        # The step itself should fail, with its own message and at its own place.
        logging.info("tfaccel: %s_step of model %r was not traced: %s", kind, model.name, error)
        return False
    finally:
        attributes.undo()
    return True


def is_tracing() -> bool:
    """Whether the current trace only creates variables, and never runs."""
    graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    while graph is not None and getattr(graph, "name", "") != _TRACE:
        graph = getattr(graph, "outer_graph", None)
    return graph is not None


def trace(run: Callable[[Any], Any], spec: Any, strategy: Any) -> None:
    """Calls `run` like a replica of `strategy`, in a graph that is never run.

    Args:
        run: a function of a batch.
        spec: of the batch.
        strategy: created by tfaccel.
    """
    graph = tf.__internal__.FuncGraph(_TRACE)
    with strategy.scope(), graph.as_default(), _variables_outside_graph(strategy):
        batch = tf.nest.map_structure(_placeholder, spec)
        if hasattr(strategy, "mesh"):
            strategy.extended.call_for_each_replica(run, args=(batch,))
            return
        alone = step.StepContext(tf.ones([]), independent=True)
        with _OneReplica(strategy, _private.first_replica(strategy)), step.entered(alone):
            run(batch)


class _OneReplica(tf.distribute.ReplicaContext):  # type: ignore[misc]
    """The context of a single replica."""

    def all_reduce(self, reduce_op: Any, value: Any, options: Any = None) -> Any:
        return value

    def all_gather(self, value: Any, axis: int, options: Any = None) -> Any:
        return value

    def merge_call(self, merge_fn: Any, args: Any = (), kwargs: Any = None) -> Any:
        return merge_fn(self.strategy, *args, **(kwargs or {}))


@contextlib.contextmanager
def _variables_outside_graph(strategy: Any) -> Iterator[None]:
    """Lifts variable creation out of the current graph."""
    making = False

    def made(next_creator: Any, **kwargs: Any) -> Any:
        nonlocal making
        if making:  # a graph inherits the creators outside of it
            return next_creator(**kwargs)
        value, beside = kwargs.get("initial_value"), kwargs.get("colocate_with")
        if not callable(value):
            value = _known(value, str(kwargs.get("name")))
        kept = {name: kwargs[name] for name in _CREATION_ARGUMENTS if kwargs.get(name) is not None}
        with tf.init_scope(), contextlib.ExitStack() as stack:
            if beside is not None:
                stack.enter_context(strategy.extended.colocate_vars_with(beside))
            making = True
            stack.callback(ended)
            return tf.Variable(value, **kept)

    def ended() -> None:
        nonlocal making
        making = False

    with tf.variable_creator_scope(made):
        yield


def _known(value: Any, name: str) -> Any:
    if not tf.is_tensor(value) or hasattr(value, "numpy"):
        return value
    known = tf.get_static_value(value)
    if known is None:
        raise ValueError(f"the first value of variable {name!r} depends on a batch")
    return known


def _placeholder(spec: Any) -> Any:
    if is_absent(spec):
        return None
    if isinstance(spec, tf.RaggedTensorSpec):
        inner = spec.shape[spec.ragged_rank + 1 :]
        return tf.compat.v1.ragged.placeholder(spec.dtype, spec.ragged_rank, inner)
    if isinstance(spec, tf.SparseTensorSpec):
        return tf.compat.v1.sparse_placeholder(spec.dtype, spec.shape)
    return tf.compat.v1.placeholder(spec.dtype, spec.shape)


def specs(batch: Any) -> Any:
    """The specs of a batch of arrays or tensors, of any number of rows."""

    def of(leaf: Any) -> Any:
        if is_absent(leaf):
            return None
        if isinstance(leaf, (tf.TypeSpec, keras.KerasTensor)):
            return tf.TensorSpec(leaf.shape, leaf.dtype)
        spec = tf.type_spec_from_value(tf.convert_to_tensor(leaf))
        return tf.TensorSpec([None, *spec.shape[1:]], spec.dtype) if spec.shape.rank else spec

    while isinstance(batch, tuple) and len(batch) > 1 and batch[-1] is None:
        batch = batch[:-1]
    return tf.nest.map_structure(of, batch)


def _is_custom(model: Any, kind: str) -> bool:
    """Whether Keras's build may miss variables of a step of `model`, since it is custom."""
    names = (f"{kind}_step", "compute_loss", "compute_metrics")
    return kind in ("train", "test") and any(_is_overridden(model, name) for name in names)


def _is_overridden(model: Any, name: str) -> bool:
    if name in vars(model):
        return True
    definitions = (vars(cls)[name] for cls in type(model).__mro__ if name in vars(cls))
    modules = (str(getattr(function, "__module__", "")) for function in definitions)
    module = next((m for m in modules if not m.startswith("tfaccel.")), "keras.")
    return not module.startswith("keras.")


def _is_built(model: Any) -> bool:
    return all(layer.built for layer in _private.layers_of(model))
