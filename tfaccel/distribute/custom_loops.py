"""Custom training loops, without the preparation of a `fit`.

Anything created in a strategy's scope may be used in such a loop: under `strategy.run`, where
gradients are summed over the replicas before the optimizer clips, tests or accumulates them, or
outside of it, where the model's variables are those of all replicas and the loop is one device's.
What was created outside the scope is taken over when the loop first uses it.
"""

from __future__ import annotations

import threading
import types
import weakref
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfaccel.distribute import _private, scope
from tfaccel.distribute.mixins import mix_in
from tfaccel.distribute.object_graph import ReachableObjects
from tfaccel.distribute.optimizer import ReduceFirst

_OBJECTS = (
    *(keras.layers.Layer, keras.losses.Loss, keras.metrics.Metric, keras.optimizers.Optimizer),
    tf.Module,
)


class _Traces(threading.local):
    built_optimizer = False


_traces = _Traces()


def optimizer_was_built() -> bool:
    """Whether an optimizer was built in a trace of this thread since this was last called.

    Such a trace captures the optimizer unbuilt: a LossScaleOptimizer scales by its initial scale,
    as a constant.
    """
    was, _traces.built_optimizer = _traces.built_optimizer, False
    return was


class Anywhere:
    """Mixin for a Keras optimizer whose `apply` may be called inside and outside a scope."""

    def build(self, variables: Any) -> None:
        """Creates slots next to their variables, even after the scope has been left."""
        strategy = self._distribution_strategy  # type: ignore[attr-defined]
        if not tf.executing_eagerly():
            _traces.built_optimizer = True
        inside = tf.distribute.get_strategy() is strategy
        if not inside or tf.distribute.in_cross_replica_context():
            scope.adopt_trained(self, list(variables), strategy)
        if inside:
            super().build(variables)  # type: ignore[misc]
            return
        with strategy.scope():
            super().build(variables)  # type: ignore[misc]

    def apply(self, grads: Any, trainable_variables: Any = None) -> Any:
        """Applies gradients, in a replica or outside of all."""
        self._distribution_strategy.used = True  # type: ignore[attr-defined]
        return super().apply(grads, trainable_variables)  # type: ignore[misc]

    def _tf_apply(self, grads: Any, trainable_variables: Any = None) -> None:
        # LossScaleOptimizer checks on replica 0 whether gradients are finite; they are the same on
        # all.
        self._common_apply(grads, trainable_variables)  # type: ignore[attr-defined]


class CreatedInScope(Anywhere, ReduceFirst):
    """Mixin for a Keras optimizer under a strategy with replicas."""


def adopt_new_optimizer(mixin: type = CreatedInScope) -> None:
    """Prepares the optimizer whose first variable is being created, if any.

    Args:
        mixin: added to its class.
    """
    optimizer = _private.optimizer_being_made()
    if optimizer is not None:
        mix_in(optimizer, mixin)


class Parts(NamedTuple):
    """The objects that a custom step uses.

    Attributes:
        layers: the outermost layers, including models.
        losses: that it calls.
    """

    layers: tuple[Any, ...]
    losses: tuple[Any, ...]


@tf.autograph.experimental.do_not_convert  # as users' functions around a loop are
def prepare(
    function: Any, strategy: Any, arguments: Any = (), mixin: type = CreatedInScope
) -> Parts:
    """Adopts the objects of a custom step into `strategy`, before it first runs.

    A counter on one device would count each replica, and an optimizer would ignore the other
    replicas.

    Args:
        function: passed to `strategy.run`.
        strategy: created by tfaccel.
        arguments: a nest of what is passed to it.
        mixin: added to the class of its optimizers.

    Returns:
        The objects it uses.
    """
    given = [each for each in tf.nest.flatten(arguments) if isinstance(each, _OBJECTS)]
    done = vars(strategy).setdefault("_prepared", weakref.WeakKeyDictionary())
    bound = isinstance(function, types.MethodType)
    owner, method = (function.__self__, function.__func__) if bound else (function, None)
    try:
        known = done.setdefault(owner, {})
    except TypeError:  # not hashable: inspected each time
        known = {}
    key = (method, *map(weakref.ref, given))
    if key not in known:
        reachable = scope.check_function(function, strategy, given)
        for optimizer in reachable.optimizers():
            mix_in(optimizer, mixin)
        known[key] = _weakly(_parts(reachable))
    layers, losses = known[key]
    return Parts(_alive(layers), _alive(losses))


def _parts(reachable: ReachableObjects) -> Parts:
    layers = [part for part in reachable.parts if isinstance(part, keras.layers.Layer)]
    inside = {id(inner) for layer in layers for inner in _private.layers_of(layer)[1:]}
    losses = [part for part in reachable.parts if isinstance(part, keras.losses.Loss)]
    return Parts(tuple(layer for layer in layers if id(layer) not in inside), tuple(losses))


def _weakly(parts: Parts) -> Parts:
    # The step may be a method of its model, which must not be kept alive here.
    return Parts(*(tuple(map(weakref.ref, kind)) for kind in parts))


def _alive(references: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(part for reference in references if (part := reference()) is not None)
