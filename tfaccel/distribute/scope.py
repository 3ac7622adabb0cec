"""Adopts objects created outside the scope of the strategy that a model runs under.

Scripts create layers that adapt to data, metrics of a module, optimizers and loaded models before
or after their `with strategy.scope():`. Their variables are on one device. Each is recreated under
the strategy, with its value and its name; the object that holds it keeps its identity.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from tfaccel.cluster.cluster import cluster_of
from tfaccel.distribute import _private
from tfaccel.distribute.graphs import outside_graphs
from tfaccel.distribute.object_graph import ReachableObjects, reachable_objects, reached_by
from tfaccel.errors import ScopeError

_MAX_NAMED = 8  # parts named in the log


def check(model: Any, strategy: Any) -> None:
    """Adopts everything that the steps of `model` use into `strategy`.

    Args:
        model: that is about to run.
        strategy: created by tfaccel.

    Raises:
        ScopeError: names a variable of another strategy, or one that cannot be replaced.
    """
    reachable = reachable_objects(model)
    own_layers = _private.layers_of(model)
    _adopt(f"model {model.name!r}", reachable, strategy)
    for layer in own_layers:
        if _private.is_trainer(layer) and _private.strategy_at_compile(layer) is not strategy:
            if layer.jit_compile and tf.config.list_physical_devices("GPU"):
                layer.jit_compile = False  # "auto" of a model of no strategy; of one it is False
            _private.set_strategy(layer, strategy)


def check_function(function: Any, strategy: Any, given: Sequence[Any] = ()) -> ReachableObjects:
    """Adopts everything that a user's function uses into `strategy`.

    Args:
        function: that is about to run under `strategy`.
        strategy: created by tfaccel.
        given: objects that are passed to it.

    Returns:
        The objects it uses.

    Raises:
        ScopeError: as `check`.
    """
    reachable = reached_by(function, given)
    _adopt(f"function {getattr(function, '__name__', function)!r}", reachable, strategy)
    return reachable


def adopt_trained(optimizer: Any, variables: Sequence[Any], strategy: Any) -> None:
    """Adopts the variables that an optimizer of `strategy` is about to make its slots for.

    Args:
        optimizer: created in the scope of `strategy`.
        variables: that it is to train, of Keras or of TensorFlow.
        strategy: created by tfaccel.

    Raises:
        ScopeError: names a variable that cannot be replaced, or that a graph has read already.
    """
    moved = [v for v in variables if _outside(_private.tf_variable(v), strategy, v.name)]
    for variable in moved:
        if not isinstance(variable, keras.Variable) or not tf.executing_eagerly():
            name = getattr(variable, "path", variable.name)
            raise ScopeError(
                f"tfaccel: optimizer {optimizer.name!r} was created inside the scope of this "
                f"strategy and trains variable {name!r}, which was created outside; expected both "
                "inside; create the model, or the variable, inside `with strategy.scope():` too."
            )
    if moved:
        _take_over(f"optimizer {optimizer.name!r}", moved, [], ReachableObjects(), strategy)


def _adopt(user: str, reachable: ReachableObjects, strategy: Any) -> None:
    variables = [
        v for v in reachable.variables if _outside(_private.tf_variable(v), strategy, v.path)
    ]
    raw = [v for v in reachable.raw if _outside(v, strategy, v.name)]
    for variable in raw:
        if None in reachable.places[id(variable)]:
            raise ScopeError(
                f"tfaccel: variable {variable.name!r} was created outside the scope of this "
                "strategy and is held where it cannot be replaced, such as a tuple; create it "
                "inside `with strategy.scope():`, or keep it in an attribute or a list."
            )
    if variables or raw:
        _take_over(user, variables, raw, reachable, strategy)
    for optimizer in reachable.optimizers():
        _private.adopt_optimizer(optimizer, strategy)


def strategy_of(model: Any) -> Any:
    """The tfaccel strategy that a variable of `model` belongs to, or None."""
    metrics = [v for metric in model.metrics for v in metric.variables]
    optimizer = getattr(getattr(model, "optimizer", None), "variables", ())
    for variable in (*model.variables, *metrics, *optimizer):
        owner = _owner(_private.tf_variable(variable))
        if owner is not None and hasattr(owner, "used"):
            return owner
    return None


def _owner(variable: Any) -> Any:
    return getattr(variable, "distribute_strategy", None)


def _outside(variable: Any, strategy: Any, name: str) -> bool:
    if variable is None:  # Keras has not created it yet
        return False
    owner = _owner(variable)
    if owner is None or owner is strategy:
        return owner is None
    if _is_of_the_process(variable):
        return True
    raise ScopeError(
        f"tfaccel: variable {name!r} was created under another strategy ({type(owner).__name__}); "
        "expected the one that the model runs under; create the model again inside `with "
        "strategy.scope():`."
    )


def _is_of_the_process(variable: Any) -> bool:
    """Whether it is the state of Keras's global seed generator, which all strategies share."""
    generator = _private.global_seed_generator()
    return generator is not None and variable is _private.tf_variable(generator.state)


def _take_over(
    user: str,
    moved: Sequence[keras.Variable],
    raw: Sequence[Any],
    reachable: ReachableObjects,
    strategy: Any,
) -> None:
    trainers, optimizers = (
        _private.live_trainers_and_optimizers()
    )  # others may share a layer of this one
    keys = [_keys(optimizer, moved) for optimizer in optimizers]
    outside_graphs(lambda: _recreate(moved, raw, reachable, strategy))
    for optimizer, before in zip(optimizers, keys, strict=True):
        _rename_keys(optimizer, before, moved)
    changed = {id(variable) for variable in moved}
    for trainer in trainers:
        if any(id(variable) in changed for variable in trainer.variables):
            trainer.train_function = trainer.test_function = trainer.predict_function = None
    for function in reachable.functions:
        _private.forget_traces(function)
    _log(user, moved, raw, reachable)


def _recreate(
    moved: Sequence[keras.Variable], raw: Sequence[Any], reachable: ReachableObjects, strategy: Any
) -> None:
    followed = _slot_owners(reachable.optimizers())
    values = _agreed([*map(_private.tf_variable, moved), *raw], strategy)
    with strategy.scope():
        for variable in moved:
            named = _named_as(variable.path, reachable.owners.get(id(variable)))
            with named, _as_slot_of(followed.get(id(variable)), strategy):
                new = _recreated(_private.tf_variable(variable), variable.name, next(values))
            _private.set_tf_variable(variable, new)
        for variable in raw:
            new = _recreated(variable, variable.name.partition(":")[0], next(values))
            for replace in reachable.places[id(variable)]:
                if replace is not None:
                    replace(new)


def _agreed(variables: Sequence[Any], strategy: Any) -> Iterator[Any]:
    """The values of variables, read when requested; the chief's, where there are several."""
    workers = getattr(getattr(strategy, "cluster", None), "size", 1)
    for variable in variables:
        # A variable of another strategy cannot be read in the scope of this one, but its parts can.
        value = getattr(variable, "values", (variable,))[0].numpy()
        # Strategies with replicas broadcast the chief's value when a variable is created.
        if workers > 1 and hasattr(strategy, "mesh") and value.dtype.kind in "iuf":
            (value,) = (v.numpy() for v in strategy.broadcast([value]))
        yield value


def _recreated(old: Any, name: str, value: Any) -> Any:
    """A variable like `old`, under the strategy of the current scope."""
    options = {
        "trainable": old.trainable,
        "name": name,
        "dtype": old.dtype,
        "aggregation": old.aggregation,
        "synchronization": old.synchronization,
        "shape": None if old.shape.is_fully_defined() else old.shape,
    }
    if old.aggregation != tf.VariableAggregation.SUM:
        return tf.Variable(value, **options)
    # Such a variable is the sum over its replicas: one of them holds all of it.
    new = tf.Variable(tf.zeros_like(value), **options)
    parts = getattr(new, "values", None)
    if parts is None:
        new.assign(value)
    elif cluster_of(_owner(new)).is_chief:
        parts[0].assign(value)
    return new


@contextlib.contextmanager
def _named_as(path: str, layer: Any) -> Iterator[None]:
    """Variables created inside get the parents of `path`, and are built by `layer`."""
    parents = path.split("/")[:-1]
    if not parents:
        yield
        return
    above = "/".join(parents[:-1])
    with keras.name_scope(parents[-1], caller=layer, deduplicate=False, override_parent=above):
        yield


def _as_slot_of(variable: Any, strategy: Any) -> Any:
    """Variables created inside are slots of `variable`."""
    if variable is None:
        return contextlib.nullcontext()
    return strategy.extended.colocate_vars_with(_private.tf_variable(variable))


def _slot_owners(optimizers: Sequence[Any]) -> dict[int, keras.Variable]:
    """By the id of an optimizer's slot, the variable of the model that it goes with."""
    owners = {}
    for optimizer in optimizers:
        trained = [v for v in _private.trained_by(optimizer) if isinstance(v, keras.Variable)]
        by_name = {v.path.replace("/", "_") + "_": v for v in trained}
        for slot in optimizer.variables:
            fits = [n for n in by_name if slot.name.startswith(n)]
            if fits:
                owners[id(slot)] = by_name[max(fits, key=len)]
    return owners


def _keys(optimizer: Any, variables: Sequence[keras.Variable]) -> list[Any]:
    return [_private.optimizer_key(optimizer, v) for v in variables]


def _rename_keys(optimizer: Any, before: list[Any], variables: Sequence[keras.Variable]) -> None:
    """Updates an optimizer's keys for variables, which are those of TensorFlow's variables."""
    after = _keys(optimizer, variables)
    new = {b: a for b, a in zip(before, after, strict=True) if b is not None and b != a}
    for attribute in list(vars(optimizer).values()):
        if isinstance(attribute, dict) and not new.keys().isdisjoint(attribute):
            items = [(new.get(key, key), value) for key, value in attribute.items()]
            attribute.clear()
            for key, value in items:
                attribute[key] = value
        elif isinstance(attribute, set) and not new.keys().isdisjoint(attribute):
            members = [new.get(key, key) for key in attribute]
            attribute.clear()
            for member in members:
                attribute.add(member)


def _log(user: str, moved: Sequence[Any], raw: Sequence[Any], reachable: ReachableObjects) -> None:
    ids = {id(v) for v in moved}
    owners = [reachable.owners[i].name for i in ids & reachable.owners.keys()]
    others = [
        part.name
        for part in reachable.parts
        if isinstance(part, (keras.optimizers.Optimizer, keras.metrics.Metric))
        and any(id(v) in ids for v in part.variables)
    ]
    names = sorted({*owners, *others, *(v.name for v in raw)})
    remainder = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    logging.info(
        "tfaccel: %d variables of %s were created outside the scope of its strategy, and have "
        "been recreated under it: those of %s%s.",
        len(moved) + len(raw),
        user,
        ", ".join(names[:_MAX_NAMED]),
        remainder,
    )
