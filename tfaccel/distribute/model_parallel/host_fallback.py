"""Host fallback: steps that cannot be divided over the mesh run whole on each host.

Some steps cannot be one program over a mesh: an eager one, one with strings or sparse tensors, with
a recurrent layer of unknown length, or with operations that DTensor cannot lay out. They are
computed as on one device, from whole copies of the variables, and their assignments are copied to
the mesh afterwards. The numbers are those of one device; such a step saves neither time nor memory,
which is logged once.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from absl import logging

from tfaccel.distribute.model_parallel import host_copies, host_transfer, replicated_ops
from tfaccel.distribute.model_parallel.mesh_batches import to_dtensors
from tfaccel.distribute.model_parallel.unsupported import CannotDivideError
from tfaccel.distribute.replacements import replaced
from tfaccel.errors import TfaccelError


class HostFallback:
    """Which steps of a model are computed whole.

    Args:
        model: whose steps they are.
        strategy: of a mesh.

    Attributes:
        reasons: for each kind of step, ``"train"``, ``"test"`` and ``"predict"``, the reason;
            missing kinds are divided, unless the model runs eagerly.
    """

    def __init__(self, model: Any, strategy: Any) -> None:
        self._model = model
        self._strategy = strategy
        broadcast = strategy.broadcast if strategy.cluster is not None else None
        self._copies = host_copies.HostCopies(broadcast=broadcast)
        self.reasons: dict[str, str] = {}
        self._replicated: set[str] = set()  # of the strategy while it traces steps of this model
        self._warned: set[str] = set()

    def applies_to(self, kind: str) -> bool:
        """Whether a step of this kind is computed whole."""
        if self._model.run_eagerly:  # which may change
            self._warn(kind, "it runs eagerly (run_eagerly=True)")
            return True
        return kind in self.reasons

    def enable(self, kind: str, reason: str) -> None:
        """From now on, steps of this kind are computed whole."""
        self._warn(kind, reason)
        self.reasons[kind] = reason

    def _warn(self, kind: str, reason: str) -> None:
        if reason not in self._warned:
            self._warned.add(reason)
            logging.warning(
                "tfaccel: the %s step of model %r is not divided over the mesh, since %s; each "
                "process computes all of it on its host: results match single-device training; no "
                "speedup or memory savings.",
                kind,
                self._model.name,
                reason,
            )

    def replicate_operands(self, operation: str | None) -> bool:
        """Gives operations of this type whole operands in steps traced from now on.

        Args:
            operation: a type, or None if unknown.

        Returns:
            Whether the type was added.
        """
        if (
            operation is None
            or operation in self._replicated
            or not replicated_ops.may_be_replicated(operation)
        ):
            return False
        self._replicated.add(operation)
        return True

    def divided(self) -> contextlib.AbstractContextManager[None]:
        """While a step of this model is traced for the mesh, or runs there."""
        return replaced(self._strategy, "replicated_operations", self._replicated)

    def run(self, function: Callable[[Any], Any], batches: list[Any]) -> Any:
        """Calls Keras's function of a step.

        Args:
            function: made by `plain`.
            batches: of the dataset, on the host or on the mesh.
        """
        batches = [on_host(batch) for batch in batches]
        with self._copies.used():
            return function(batches)


_functions: weakref.WeakKeyDictionary[Any, tuple[Any, host_copies.HostCopies]] = (
    weakref.WeakKeyDictionary()
)


def run_function(function: Any, strategy: Any, reason: str, args: Any, kwargs: Any) -> Any:
    """Calls a `tf.function` of the user's that uses a mesh and cannot run there.

    Args:
        function: its own traces are not used, as they may capture the mesh.
        strategy: of the mesh.
        reason: why it cannot run there.
        args: its arguments.
        kwargs: its keyword arguments.
    """
    if function not in _functions:
        logging.warning(
            "tfaccel: function %s is not divided over the mesh, since %s; each process computes "
            "all of it on its host.",
            getattr(function.python_function, "__name__", function),
            reason,
        )
        broadcast = strategy.broadcast if strategy.cluster is not None else None
        host_function = tf.function(function.python_function)
        _functions[function] = host_function, host_copies.HostCopies(broadcast=broadcast)
    host_function, copies = _functions[function]
    with copies.used():
        return host_function(*args, **kwargs)


def on_host(batch: Any) -> Any:
    """A nest of host tensors, from one that `batches.place` may have put on the mesh."""

    def leaf(value: Any) -> Any:
        return (
            tf.constant(host_transfer.gather(value)) if host_transfer.is_on_mesh(value) else value
        )

    return tf.nest.map_structure(leaf, to_dtensors(batch), expand_composites=False)


def with_host_fallback(
    make_divided: Callable[[], Callable[[Any], Any]],
    make_plain: Callable[[], Any],
    fallback: HostFallback,
    kind: str,
) -> Callable[[list[Any]], Any]:
    """A step that runs on the mesh if it can, and otherwise whole.

    An operation that DTensor cannot lay out first gets whole operands, and the step is retraced:
    the rest of it stays divided.

    Args:
        make_divided: makes Keras's function, which takes batches and runs on the mesh.
        make_plain: makes the same function to be traced over host tensors.
        fallback: of the model.
        kind: of the step.
    """
    on_host_function = functools.cache(make_plain)
    function: Callable[[Any], Any] | None = None

    def on_mesh(batches: list[Any]) -> Any:
        nonlocal function
        while True:
            function = function or make_divided()
            try:
                with fallback.divided():
                    return function(batches)
            except CannotDivideError as error:
                if not fallback.replicate_operands(error.operation):
                    raise
                function = None

    def step(batches: list[Any]) -> Any:
        if fallback.applies_to(kind):
            return fallback.run(on_host_function(), batches)
        try:
            return on_mesh(batches)
        except Exception as error:
            if (reason := _reason(error)) is None:
                raise
            # An error of the program itself is raised again.
            try:
                result = fallback.run(on_host_function(), batches)
            except Exception as again:
                raise (error if isinstance(error, TfaccelError) else again) from None
            fallback.enable(kind, reason)
            return result

    return step


def _reason(error: BaseException) -> str | None:
    """Why a step that did not start cannot be divided; None for any other error."""
    of: BaseException | None = error
    while of is not None:  # Keras wraps errors that a layer raises
        if isinstance(of, CannotDivideError):
            return of.reason
        of = of.__context__
    if isinstance(error, (TfaccelError, tf.errors.OpError)):
        return None
    message = (str(error).strip().splitlines() or [""])[0][:200]
    return f"tracing it for the mesh failed ({type(error).__name__}: {message})"
