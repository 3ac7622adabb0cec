"""Rematerialization (`keras.RematScope`, `keras.remat`): activations computed again backwards.

Keras on TensorFlow calls `tf.recompute_grad`, which takes no keyword arguments in a graph, does not
see losses that are added inside, and calls the function a second time as it stands then: layers
would draw another dropout mask, move their statistics twice and forget `training` and the precision
of variables. So what it calls here is a function of tensors alone: state goes in and comes out, as
in Keras on JAX, and the second call begins from the same one.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfaccel.distribute import _private, stateful_random
from tfaccel.distribute.mixins import mix_in
from tfaccel.distribute.replacements import replaced
from tfaccel.errors import StrategyError


def install() -> None:
    """Makes Keras rematerialize with `rematerialized`."""
    _private.set_remat(rematerialized)


def in_scope_of(strategy: tf.distribute.Strategy, mode: str | None) -> None:
    """Makes layers created in a strategy's scope those of a `keras.RematScope`.

    Args:
        strategy: any, TensorFlow's default one too, for which an earlier mode is forgotten.
        mode: ``"full"`` or ``"activations"``; None for none.

    Raises:
        StrategyError: when Keras has no such scope.
    """
    if mode is not None and not hasattr(keras, "RematScope"):
        raise StrategyError(
            f"tfaccel: rematerialization={mode!r} was requested, and Keras {keras.__version__} has "
            "no RematScope; install a newer one, or leave it out."
        )
    if mode is not None:
        mix_in(strategy, _RematerializesInScope)
    if isinstance(strategy, _RematerializesInScope):
        strategy.rematerialization = mode


class _RematerializesInScope:
    """Mixin for a `tf.distribute.Strategy`."""

    rematerialization: str | None = None

    def scope(self) -> Any:
        """As the strategy's own, with a `keras.RematScope`."""
        return _with_remat(super().scope(), self.rematerialization)  # type: ignore[misc]


@contextlib.contextmanager
def _with_remat(scope: Any, mode: str | None) -> Iterator[Any]:
    with keras.RematScope(mode), scope as entered:
        yield entered


def rematerialized(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose activations are computed again for the gradient, instead of being kept.

    It is called as it is: the call of a model, whose parts are rematerialized one by one; inside
    another one; while layers are built; without a floating-point tensor among the arguments; where
    it changes trainable variables, or computes with tensors that are no arguments.

    Args:
        function: of tensors in any nest, by position and keyword; the `call` of a layer, for one.

    Raises:
        StrategyError: when called, the function updates a `tf.Variable` that is no weight of Keras,
            or uses TensorFlow's own random operations, so that a second call would differ.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        leaves = tf.nest.flatten((args, kwargs))
        floating = [i for i, leaf in enumerate(leaves) if _is_floating(leaf)]
        if not floating or _runs_as_it_is(function, leaves):
            return function(*args, **kwargs)

        def of(tensors: Sequence[Any]) -> Any:
            given = list(leaves)
            for i, tensor in zip(floating, tensors, strict=True):
                given[i] = _masked_as(tensor, leaves[i])
            positional, named = tf.nest.pack_sequence_as((args, kwargs), given)
            return function(*positional, **named)

        run = _Run(function, of)
        outputs = run([leaves[i] for i in floating])
        return function(*args, **kwargs) if outputs is None else run.finish(outputs)

    return call


_thread_state = threading.local()


def _owner(function: Any) -> keras.layers.Layer | None:
    """The layer whose method is called."""
    owner = getattr(inspect.unwrap(function), "__self__", None)
    return owner if isinstance(owner, keras.layers.Layer) else None


def _runs_as_it_is(function: Any, leaves: Sequence[Any]) -> bool:
    owner = _owner(function)
    return (
        getattr(_thread_state, "inside", False)
        or _private.in_stateless_scope()  # Keras asks for shapes
        or isinstance(owner, keras.Model)
        or (owner is not None and not all(each.built for each in _private.layers_of(owner)))
        or any(isinstance(leaf, tf.__internal__.CompositeTensor) for leaf in leaves)
    )


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, tf.Tensor) and bool(leaf.dtype.is_floating)


def _masked_as(tensor: Any, like: Any) -> Any:
    if (mask := _private.keras_mask(like)) is not None:
        _private.set_keras_mask(tensor, mask)
    return tensor


def _after(upstream: Sequence[Any], tensors: Sequence[Any]) -> list[Any]:
    """Copies of tensors that are made when the first of `upstream` is known, and not before.

    XLA heeds no control dependencies, so that they depend on a number: zero, or NaN.
    """
    if tf.executing_eagerly():
        return [tf.identity(tensor) for tensor in tensors]
    first = tf.reshape(upstream[0], [-1])[:1]
    zero = tf.reduce_sum(tf.where(tf.math.is_nan(first), first, tf.zeros_like(first)))
    return [tensor + tf.cast(zero, tensor.dtype) for tensor in tensors]


class _Run:
    """One call of a function, and its repetition for the gradient.

    Args:
        function: that is called.
        of: calls it with tensors in the place of its floating-point arguments.
    """

    def __init__(self, function: Any, of: Callable[[Sequence[Any]], Any]) -> None:
        self._function, self._of = function, of
        self._contexts = _private.call_contexts()
        owner = _owner(function)
        self._weights = owner.trainable_variables if owner is not None else []
        self._before: list[tuple[Any, Any]] | None = None  # what it updates, with the values
        self._updates: list[tuple[Any, Any]] = []
        self._returned: Any = None
        self._is_repeatable = True

    def __call__(self, tensors: Sequence[Any]) -> list[Any] | None:
        """Its floating-point outputs and the losses it adds; None where that would be wrong."""
        count = len(tensors)

        @tf.custom_gradient
        def computed(*given: Any) -> Any:
            with _private.stop_recording():
                outputs = self._compute(given[:count], given[count:])

            def gradient(*upstream: Any, variables: Sequence[Any] = ()) -> Any:
                with tf.name_scope("gradient_tape"), tf.GradientTape() as tape:
                    again = [*_after(upstream, given[:count]), *map(tf.identity, given[count:])]
                    tape.watch([*again, *variables])
                    repeated = self._compute(again[:count], again[count:])
                grads = [
                    None if grad is None else tf.convert_to_tensor(grad)  # of rows of a table too
                    for grad in tape.gradient(repeated, [*again, *variables], upstream)
                ]
                of_given, of_variables = grads[: len(given)], grads[len(given) :]
                return (of_given, of_variables) if variables else of_given

            return outputs, gradient

        outputs = computed(*tensors, *map(_value, self._weights))
        return outputs if self._is_repeatable else None

    def finish(self, outputs: Sequence[Any]) -> Any:
        """What the function returned; its updates and losses take effect."""
        for variable, value in self._updates:
            variable.assign(value)
        given = iter(outputs)
        leaves = [
            _masked_as(next(given), leaf) if _is_floating(leaf) else leaf
            for leaf in tf.nest.flatten(self._returned)
        ]
        if losses := list(given):
            _private.layers_being_built()[-1].add_loss(losses)
        return tf.nest.pack_sequence_as(self._returned, leaves)

    def _compute(self, tensors: Sequence[Any], weights: Sequence[Any]) -> list[Any]:
        first = self._before is None
        graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
        begin = len(graph.get_operations()) if graph is not None else 0
        with (
            replaced(_thread_state, "inside", True),
            _private.in_call_contexts(self._contexts),
            _State([*zip(self._weights, weights, strict=True), *(self._before or ())]) as state,
        ):
            returned = self._of(tensors)
        if first:
            self._returned, self._updates = returned, state.updates
            self._before = [(variable, _value(variable)) for variable, _ in state.updates]
            if graph is not None:
                self._check(graph.get_operations()[begin:], [*tensors, *weights])
            self._is_repeatable &= not any(v.trainable for v, _ in state.updates)
        return [*filter(_is_floating, tf.nest.flatten(returned)), *state.losses]

    def _check(self, operations: Sequence[Any], tensors: Sequence[Any]) -> None:
        """Looks for what is no function of tensors."""
        inside = {id(op) for op in operations}
        known = {id(tensor) for tensor in tensors}
        for op in operations:
            if op.type.startswith("Assign") or op.type in stateful_random.TYPES:
                raise StrategyError(
                    f"tfaccel: {self._name()} cannot be rematerialized: computing it again would "
                    f"not give the same, because of the operation {op.name} ({op.type}); expected "
                    "a function of its arguments and of weights of Keras: draw with keras.random "
                    "and a keras.random.SeedGenerator, and keep state in weights (add_weight)."
                )
            for tensor in op.inputs:
                outer = id(tensor.op) not in inside and id(tensor) not in known
                if outer and tensor.dtype.is_floating and tensor.op.type not in _NOT_COMPUTED:
                    self._is_repeatable = False

    def _name(self) -> str:
        layers = _private.layers_being_built()
        return repr(layers[-1].name) if layers else getattr(self._function, "__name__", "it")


_NOT_COMPUTED = frozenset({"Const", "ReadVariableOp", "Placeholder"})
"""Operations whose result is no activation: a gradient with respect to it is not lost."""


class _State(keras.StatelessScope):  # type: ignore[misc]
    """Inside, weights are read as given, and not written.

    Attributes:
        updates: weights that were to be written, with the values.
        losses: that were added.
    """

    def __init__(self, values: Sequence[tuple[Any, Any]]) -> None:
        super().__init__(values, collect_losses=True)
        self._written: dict[int, Any] = {}

    @property
    def updates(self) -> list[tuple[Any, Any]]:
        return [(v, self.get_current_value(v)) for v in self._written.values()]

    def add_update(self, update: tuple[Any, Any]) -> None:
        """Keras requests it for each assignment."""
        super().add_update(update)
        self._written[id(update[0])] = update[0]


def _value(variable: keras.Variable) -> Any:
    """The value of a weight, in its own precision."""
    return tf.convert_to_tensor(_private.tf_variable(variable))
