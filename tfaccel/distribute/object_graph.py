"""What a model's steps can reach: its layers, metrics, optimizers and variables, wherever they are.

Keras lists what is attached to a model. A `train_step` uses more: a metric of its module or its
class, a second model in a closure, an optimizer inside a user's object. So everything that its
Python code references is searched.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from tfaccel.distribute import _private

Replace = Callable[[Any], None]

_PARTS = (
    keras.layers.Layer,
    keras.metrics.Metric,
    keras.optimizers.Optimizer,
    keras.losses.Loss,
    keras.random.SeedGenerator,
    keras.optimizers.schedules.LearningRateSchedule,
    keras.regularizers.Regularizer,
    keras.constraints.Constraint,
)
# Their objects hold no variables of a model, or do not belong to its user.
_LIBRARIES = {*sys.stdlib_module_names, "absl", "google", "h5py", "keras", "ml_dtypes", "numpy"} | {
    *("keras_cv", "keras_hub", "keras_nlp", "optree", "rich", "tensorflow", "tfaccel")
}
_LIBRARIES -= {"__main__"}
# The first match applies.
_KINDS: dict[str, Any] = {
    "variable": keras.Variable,
    "tensorflow": tf.Variable,
    "generator": tf.random.Generator,
    "part": _PARTS,
    "mapping": Mapping,
    "sequence": (list, tuple),
    "partial": functools.partial,
    "method": types.MethodType,
    "wrapped": (staticmethod, classmethod, property, functools.cached_property),
    "traced": tf.types.experimental.PolymorphicFunction,
    "function": types.FunctionType,
    "class": type,
}
# TensorFlow's list of tracked objects repeats everything; calls of a layer lead to all other models
# that share it.
_SKIPPED = ("_self_", "_inbound_nodes", "_outbound_nodes", "_tfaccel")
_MAX_OBJECTS = 10_000  # elements of a container: one with more holds data


@dataclass
class ReachableObjects:
    """The objects found, each once, in the order of a walk from the model.

    Attributes:
        variables: of Keras.
        owners: the innermost layer of a variable, by the variable's id.
        raw: variables of TensorFlow that no Keras variable holds.
        places: by the id of such a variable, a setter for each place that holds it; None for a
            read-only place.
        parts: layers (models too), metrics, optimizers, losses, seed generators.
        functions: `tf.function`s.
        generators: `tf.random.Generator`s, whose states are variables.
    """

    variables: list[keras.Variable] = field(default_factory=list)
    owners: dict[int, keras.layers.Layer] = field(default_factory=dict)
    raw: list[tf.Variable] = field(default_factory=list)
    places: dict[int, list[Replace | None]] = field(default_factory=dict)
    parts: list[Any] = field(default_factory=list)
    functions: list[Any] = field(default_factory=list)
    generators: list[tf.random.Generator] = field(default_factory=list)

    def optimizers(self) -> list[keras.optimizers.Optimizer]:
        """The optimizers, including nested ones."""
        return [p for p in self.parts if isinstance(p, keras.optimizers.Optimizer)]


def reachable_objects(model: Any) -> ReachableObjects:
    """Everything that the steps of `model` can reach.

    Args:
        model: a Keras model.
    """
    walk = _Traversal()
    for layer in _private.layers_of(model):  # in the order in which they are called
        for variable in layer.weights:
            walk.visit(variable, None)
            walk.reachable.owners[id(variable)] = layer  # an inner layer comes after the outer ones
    walk.visit(model, None)
    if (generator := _private.global_seed_generator()) is not None:
        walk.visit(generator, None)
    walk.run()
    return walk.reachable


def reached_by(function: Any, given: Sequence[Any] = ()) -> ReachableObjects:
    """Everything that a user's function can reach.

    Args:
        function: a function, a bound method, a `tf.function` or a `functools.partial`.
        given: objects that are passed to it.
    """
    walk = _Traversal()
    for each in (function, *given):
        walk.visit(each, None)
    if (generator := _private.global_seed_generator()) is not None:
        walk.visit(generator, None)
    walk.run()
    for layer in walk.reachable.parts:
        if isinstance(layer, keras.layers.Layer):
            # An inner layer comes after the outer ones.
            walk.reachable.owners.update({id(v): layer for v in layer.weights})
    return walk.reachable


class _Traversal:
    def __init__(self) -> None:
        self.reachable = ReachableObjects()
        self._seen: dict[int, Any] = {}  # keeps the objects alive, so that no id is reused
        self._waiting: list[tuple[str, Any]] = []

    def visit(self, value: Any, replace: Replace | None) -> None:
        """Records `value`, with the setter `replace` of its place."""
        kind = _kind(type(value))  # type: ignore[arg-type]
        if kind is None:
            return
        if kind == "tensorflow":
            if id(value) not in self._seen:
                self._seen[id(value)] = value
                self.reachable.raw.append(value)
            self.reachable.places.setdefault(id(value), []).append(replace)
            return
        if id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if kind in ("variable", "generator"):
            reachable = self.reachable
            (reachable.variables if kind == "variable" else reachable.generators).append(value)
            return
        if kind == "part":
            self.reachable.parts.append(value)
        self._waiting.append((kind, value))

    def run(self) -> None:
        """Searches all recorded objects, depth first and in order."""
        while self._waiting:
            kind, value = self._waiting.pop()
            known = len(self._waiting)
            for inner, replace in _inside(kind, value, self.reachable):
                self.visit(inner, replace)
            self._waiting[known:] = reversed(self._waiting[known:])


@functools.cache
def _kind(cls: Any) -> str | None:
    """The kind of `cls` for a walk; None if its instances hold nothing."""
    return next((kind for kind, classes in _KINDS.items() if issubclass(cls, classes)), None) or (
        "object" if _is_users(cls.__module__) else None
    )


def _inside(
    kind: str, value: Any, reachable: ReachableObjects
) -> Iterator[tuple[Any, Replace | None]]:
    if kind == "mapping":
        if len(value) <= _MAX_OBJECTS:
            for key, inner in list(value.items()):
                yield inner, functools.partial(_replace, value, key)
    elif kind == "sequence":
        if len(value) <= _MAX_OBJECTS:
            for i, inner in enumerate(value):
                can = isinstance(value, list)
                yield inner, functools.partial(_replace, value, i) if can else None
    elif kind == "partial":
        yield from ((v, None) for v in (value.func, value.args, value.keywords))
    elif kind == "method":
        yield from ((v, None) for v in (value.__self__, value.__func__))
    elif kind == "wrapped":
        for name in ("__func__", "fget", "func"):
            yield getattr(value, name, None), None
    elif kind == "function":
        if _is_users(value.__module__):
            yield from _of_function(value)
    elif kind == "traced":
        reachable.functions.append(value)
        yield value.python_function, None
    elif kind == "class":
        if _is_users(value.__module__):
            yield from _of_class(value)
    else:
        yield from _of_object(value)


def _of_object(value: Any) -> Iterator[tuple[Any, Replace | None]]:
    for name, inner in list(getattr(value, "__dict__", {}).items()):
        if not name.startswith(_SKIPPED):
            yield inner, functools.partial(setattr, value, name)
    for cls in type(value).__mro__:
        if _is_users(cls.__module__):
            yield cls, None


def _of_class(cls: type) -> Iterator[tuple[Any, Replace | None]]:
    for name, inner in list(vars(cls).items()):
        yield inner, functools.partial(setattr, cls, name)


def _of_function(function: types.FunctionType) -> Iterator[tuple[Any, Replace | None]]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents, functools.partial(setattr, cell, "cell_contents")
        except ValueError:  # an empty one
            continue
    yield from ((v, None) for v in function.__defaults__ or ())
    yield from ((v, None) for v in (function.__kwdefaults__ or {}).values())
    names = dict.fromkeys(_names(function.__code__))
    for name in names:
        inner = function.__globals__.get(name)
        yield inner, functools.partial(_replace, function.__globals__, name)
        if isinstance(inner, types.ModuleType) and _is_users(inner.__name__):
            for attribute in names:
                if attribute in vars(inner):
                    yield (
                        vars(inner)[attribute],
                        functools.partial(_replace, vars(inner), attribute),
                    )
    if (wrapped := getattr(function, "__wrapped__", None)) is not None:
        yield wrapped, None


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _replace(container: Any, key: Any, new: Any) -> None:
    container[key] = new


def _is_users(module: Any) -> bool:
    return isinstance(module, str) and module.partition(".")[0] not in _LIBRARIES
