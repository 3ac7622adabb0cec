"""A training step on a mesh beside that of one device; nothing of both stays.

The step that is compared is the one that will train, with its first batch: DTensor compiles a step
anew for each number of rows, and that takes most of the time of a first step. One device takes the
same step on the host, by copies of the variables.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.experimental import dtensor

from tfaccel.distribute import gradients, logs
from tfaccel.distribute.batches import without_nothing
from tfaccel.distribute.model_parallel import host
from tfaccel.distribute.model_parallel.batches import unwrap
from tfaccel.distribute.model_parallel.copies import Copies, mesh_variables
from tfaccel.distribute.model_parallel.undivided import on_host
from tfaccel.distribute.model_parallel.which_layer import outputs
from tfaccel.distribute.reachable import reached
from tfaccel.distribute.seen import CannotRunError, HostState, Seen, Traced, flat, variables_of

MOST_BYTES = 8 << 30  # of all tensors that one device's step makes, with the variables


class Beside:
    """The first step of `model`, to be taken on the mesh and on one device.

    Args:
        strategy: of the mesh.
        model: compiled.
        function: takes the step; it is given a list of batches.
        batch: the first one.
        limited: whether what is too large for one device is left out.

    Raises:
        CannotRunError: when it is.
    """

    def __init__(
        self, strategy: Any, model: Any, function: Callable[[Any], Any], batch: Any, limited: bool
    ) -> None:
        self._strategy, self._model = strategy, model
        self._function, self._batch, self._limited = function, batch, limited
        variables = [*variables_of(model), *reached(model).variables]
        self._variables = list({id(v): v for v in variables if mesh_variables([v])}.values())
        self._held = mesh_variables(self._variables)
        self._values: dict[int, np.ndarray] = {}
        self._refuse_large(sum(_bytes(v.dtype, v.shape) for v in self._held))
        self._data = on_host(without_nothing(batch))

    def on_mesh(self) -> Seen:
        """What the step on the mesh does; every process must come here.

        Raises:
            tf.errors.OpError: what goes wrong in it.
        """
        self._values = {id(v): host.gather(v.stored()) for v in self._held}
        before = [_number(self._values[id(v)]) for v in self._held]
        with self._set_back(), self._strategy.switch.on():
            said = self._strategy.outcome.follow(self._function([self._batch]))
            self._strategy.outcome.check()
            seen = Seen(logs={logs.name_of(at): _number(log) for at, log in logs.leaves(said)})
            after = [_number(v.stored()) for v in self._held]
        changes = zip(self._variables, before, after, strict=True)
        seen.add_changes(self._model, changes, slots=True)
        return seen

    def on_one_device(self) -> Seen:
        """What one device's step does, in this process.

        Raises:
            CannotRunError: when it is too large, or fails.
        """
        with self._copied() as copies:
            traced = Traced(self._single, self._data)
            self._refuse_other_draws(traced)
            self._refuse_large(_made_by(traced.graph))
            before = [_number(copies.of(v).value()) for v in self._held]
            with _unoptimized():
                seen = traced.run(self._data)
            after = [_number(copies.of(v).value()) for v in self._held]
        changes = zip(self._variables, before, after, strict=True)
        seen.add_changes(self._model, changes, slots=True)
        return seen

    def layers_on_mesh(self) -> dict[str, np.ndarray]:
        """What each layer gives on the mesh; every process must come here."""

        @tf.function(autograph=False)
        def traced(batch: Any) -> Any:
            run = functools.partial(outputs, self._model)
            return self._strategy.extended.call_for_each_replica(run, args=(unwrap(batch),))

        left = HostState(self._model)
        try:
            with self._set_back(), self._strategy.switch.on():
                return {
                    name: _number(value)
                    for name, value in traced(self._strategy.on_mesh(self._batch)).items()
                }
        finally:
            left.set_back()

    def layers_on_one_device(self) -> dict[str, np.ndarray]:
        """What each layer gives on one device.

        Raises:
            CannotRunError: when it fails.
        """

        def given(data: Any) -> Any:
            with tf.device("/CPU:0"):
                run = functools.partial(outputs, self._model)
                return self._strategy.as_one_device(run, data), []

        with self._copied():
            return Traced(given, self._data).run(self._data).logs

    @contextlib.contextmanager
    def _set_back(self) -> Iterator[None]:
        """Sets the variables of the mesh back to what they are now."""
        born = self._strategy.born = []
        saved = [(v, v.stored()) for v in self._held]
        try:
            yield
        finally:
            self._strategy.born = None
            for variable, value in [*saved, *born]:
                variable.store(value)

    @contextlib.contextmanager
    def _copied(self) -> Iterator[Copies]:
        """Runs what is inside on copies of the variables, of which nothing stays."""
        copies, left = Copies(lambda: self._held), HostState(self._model)
        gradients.install()
        # Read by all processes before: here there may be one alone.
        self._strategy.held = self._values
        try:
            with self._strategy.scope(), copies.used(put_back=False):
                yield copies
        except CannotRunError:
            raise
        except Exception as error:
            raise CannotRunError(f"{type(error).__name__}: {error}") from error
        finally:
            self._strategy.held = None
            left.set_back()

    def _single(self, data: Any) -> Any:
        with tf.device("/CPU:0"), gradients.recorded() as taken:
            said = self._strategy.as_one_device(self._model.train_step, data)
            return flat(said), taken

    def _refuse_large(self, size: int) -> None:
        if self._limited and size > MOST_BYTES:
            raise CannotRunError(
                f"one device's step makes tensors of {size / 2**30:.1f} GiB, and check='auto' "
                f"compares up to {MOST_BYTES / 2**30:g} GiB; check='always' compares any"
            )

    def _refuse_other_draws(self, traced: Traced) -> None:
        switch = self._strategy.switch
        if switch.unknown is not None or switch.drawn < traced.drawn:
            raise CannotRunError(
                "it draws random numbers in a function, condition or loop inside the step, or by "
                f"an operation that cannot be switched off ({switch.unknown or 'in a graph'})"
            )


@contextlib.contextmanager
def _unoptimized() -> Iterator[None]:
    """Leaves a graph that runs once as it is: to optimize it would take longer than to run it."""
    before = tf.config.optimizer.get_experimental_options().get("disable_meta_optimizer", False)
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": before})


def _number(value: Any) -> np.ndarray:
    """A tensor of the mesh or the host, or a number, as an array; floating ones as float64."""
    on_mesh = tf.is_tensor(value) and dtensor.is_dtensor(value)
    array = host.gather(value) if on_mesh else np.asarray(value)
    floating = tf.as_dtype(array.dtype).is_floating
    return array.astype("float64") if floating else array


def _made_by(graph: Any) -> int:
    """The bytes of all tensors of a graph, as far as their shapes are known."""
    return sum(_bytes(t.dtype, t.shape) for op in graph.get_operations() for t in op.outputs)


def _bytes(dtype: Any, shape: Any) -> int:
    dtype, shape = tf.as_dtype(dtype), tf.TensorShape(shape)
    if shape.rank is None or dtype in (tf.resource, tf.variant, tf.string):
        return 0
    return int(math.prod(1 if size is None else size for size in shape) * dtype.size)
