"""Runs a training step on a mesh and on one device, and restores all that both have changed.

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
from tfaccel.distribute.batches import absent_to_none
from tfaccel.distribute.double_precision import DoublePrecision
from tfaccel.distribute.model_parallel import host_transfer
from tfaccel.distribute.model_parallel.host_copies import HostCopies, mesh_variables
from tfaccel.distribute.model_parallel.host_fallback import on_host
from tfaccel.distribute.model_parallel.layer_attribution import layer_outputs
from tfaccel.distribute.model_parallel.mesh_batches import to_dtensors
from tfaccel.distribute.object_graph import reachable_objects
from tfaccel.distribute.replacements import replaced
from tfaccel.distribute.step_result import (
    HostState,
    ParityRunError,
    StepResult,
    TracedStep,
    flat_logs,
    variables_of,
)

MAX_BYTES = 8 << 30  # of all tensors that one device's step makes, with the variables


class MeshParityRun:
    """The first step of `model`, to be taken on the mesh and on one device.

    Args:
        strategy: of the mesh.
        model: compiled.
        function: takes the step; it is given a list of batches.
        batch: the first one.
        limited: whether what is too large for one device is left out.

    Raises:
        ParityRunError: when it is.
    """

    def __init__(
        self, strategy: Any, model: Any, function: Callable[[Any], Any], batch: Any, limited: bool
    ) -> None:
        self._strategy, self._model = strategy, model
        self._function, self._batch, self._limited = function, batch, limited
        reached = reachable_objects(model)
        variables = [*variables_of(model), *reached.variables, *reached.raw]
        self._variables = list({id(v): v for v in variables if mesh_variables([v])}.values())
        self._host_variables = [v for v in reached.raw if not mesh_variables([v])]
        self._held = mesh_variables(self._variables)
        self._values: dict[int, np.ndarray] = {}
        self._refuse_large(sum(_bytes(v.dtype, v.shape) for v in self._held))
        self._data = on_host(absent_to_none(batch))

    def on_mesh(self) -> StepResult:
        """What the step on the mesh does; every process must come here.

        Raises:
            tf.errors.OpError: what goes wrong in it.
        """
        self._values = {id(v): host_transfer.gather(v.stored()) for v in self._held}
        before = [_to_numpy(self._values[id(v)]) for v in self._held]
        with self._variables_restored(), self._strategy.random_override.enabled():
            step_logs = self._strategy.deferred_errors.follow(self._function([self._batch]))
            self._strategy.deferred_errors.check()
            result = StepResult(
                logs={logs.name_of(at): _to_numpy(log) for at, log in logs.leaves(step_logs)}
            )
            after = [_to_numpy(v.stored()) for v in self._held]
        changes = zip(self._variables, before, after, strict=True)
        result.add_changes(self._model, changes, slots=True)
        return result

    def on_one_device(self) -> StepResult:
        """What one device's step does, in this process.

        Raises:
            ParityRunError: when it is too large, or fails.
        """
        with self._on_host_copies() as copies:
            traced = self._traced_on_one_device()
            before = [_to_numpy(copies.of(v).value()) for v in self._held]
            with _graph_optimizer_off():
                result = traced.run(self._data)
            after = [_to_numpy(copies.of(v).value()) for v in self._held]
        changes = zip(self._variables, before, after, strict=True)
        result.add_changes(self._model, changes, slots=True)
        return result

    def in_double_precision(self) -> StepResult:
        """What one device's step would do without rounding to float32, in this process.

        Raises:
            ParityRunError: when it is too large, or has operations that take no float64.
        """
        with self._on_host_copies() as copies:
            traced = self._traced_on_one_device(factor=2)
            held = [copies.of(v) for v in self._held]
            before = [_to_numpy(copy.value()) for copy in held]
            double = DoublePrecision(traced.concrete)
            with _graph_optimizer_off():
                result = traced.run_in(double, self._data)
            after = [double.value_of(copy) for copy in held]
        changes = [
            (variable, was, was if now is None else now)
            for variable, was, now in zip(self._variables, before, after, strict=True)
        ]
        result.add_changes(self._model, changes, slots=True)
        return result

    def _traced_on_one_device(self, factor: int = 1) -> TracedStep:
        traced = TracedStep(self._one_device_step, self._data)
        self._refuse_other_random_ops(traced)
        self._refuse_large(factor * _graph_bytes(traced.graph))
        return traced

    def layers_on_mesh(self) -> dict[str, np.ndarray]:
        """What each layer gives on the mesh; every process must come here."""

        @tf.function(autograph=False)
        def traced(batch: Any) -> Any:
            run = functools.partial(layer_outputs, self._model)
            return self._strategy.extended.call_for_each_replica(run, args=(to_dtensors(batch),))

        host_state = HostState(self._model)
        try:
            with self._variables_restored(), self._strategy.random_override.enabled():
                return {
                    name: _to_numpy(value)
                    for name, value in traced(self._strategy.on_mesh(self._batch)).items()
                }
        finally:
            host_state.restore()

    def layers_on_one_device(self) -> dict[str, np.ndarray]:
        """What each layer gives on one device.

        Raises:
            ParityRunError: when it fails.
        """

        def given(data: Any) -> Any:
            with tf.device("/CPU:0"):
                run = functools.partial(layer_outputs, self._model)
                return self._strategy.as_one_device(run, data), []

        with self._on_host_copies():
            return TracedStep(given, self._data).run(self._data).logs

    @contextlib.contextmanager
    def _variables_restored(self) -> Iterator[None]:
        """Sets the variables of the mesh back to what they are now."""
        created: list[tuple[Any, Any]] = []
        saved = [(v, v.stored()) for v in self._held]
        try:
            with (
                self._host_variables_restored(),
                replaced(self._strategy, "created_variables", created),
            ):
                yield
        finally:
            for variable, value in [*saved, *created]:
                variable.store(value)

    @contextlib.contextmanager
    def _host_variables_restored(self) -> Iterator[None]:
        saved = [(v, v.numpy()) for v in self._host_variables]
        try:
            yield
        finally:
            for variable, value in saved:
                variable.assign(value)

    @contextlib.contextmanager
    def _on_host_copies(self) -> Iterator[HostCopies]:
        """Runs what is inside on copies of the variables, of which nothing stays."""
        copies, host_state = HostCopies(lambda: self._held), HostState(self._model)
        gradients.install()
        # Read by all processes before: here there may be one alone.
        values_read = replaced(self._strategy, "gathered_values", self._values)
        try:
            with (
                self._host_variables_restored(),
                values_read,
                self._strategy.scope(),
                copies.used(put_back=False),
            ):
                yield copies
        except ParityRunError:
            raise
        except Exception as error:
            raise ParityRunError(f"{type(error).__name__}: {error}") from error
        finally:
            host_state.restore()

    def _one_device_step(self, data: Any) -> Any:
        with tf.device("/CPU:0"), gradients.recorded() as recorded:
            step_logs = self._strategy.as_one_device(self._model.train_step, data)
            return flat_logs(step_logs), recorded

    def _refuse_large(self, size: int) -> None:
        if self._limited and size > MAX_BYTES:
            raise ParityRunError(
                f"one device's step makes tensors of {size / 2**30:.1f} GiB, and check='auto' "
                f"compares up to {MAX_BYTES / 2**30:g} GiB; check='always' compares any"
            )

    def _refuse_other_random_ops(self, traced: TracedStep) -> None:
        switch = self._strategy.random_override
        if switch.unsupported is not None or switch.random_ops < traced.random_ops:
            raise ParityRunError(
                "it draws random numbers in a function, condition or loop inside the step, or by "
                f"an operation that cannot be switched off ({switch.unsupported or 'in a graph'})"
            )


@contextlib.contextmanager
def _graph_optimizer_off() -> Iterator[None]:
    """Leaves a graph that runs once as it is: to optimize it would take longer than to run it."""
    before = tf.config.optimizer.get_experimental_options().get("disable_meta_optimizer", False)
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": before})


def _to_numpy(value: Any) -> np.ndarray:
    """A tensor of the mesh or the host, or a number, as an array; floating ones as float64."""
    on_mesh = tf.is_tensor(value) and dtensor.is_dtensor(value)
    array = host_transfer.gather(value) if on_mesh else np.asarray(value)
    floating = tf.as_dtype(array.dtype).is_floating
    return array.astype("float64") if floating else array


def _graph_bytes(graph: Any) -> int:
    """The bytes of all tensors of a graph, as far as their shapes are known."""
    return sum(_bytes(t.dtype, t.shape) for op in graph.get_operations() for t in op.outputs)


def _bytes(dtype: Any, shape: Any) -> int:
    dtype, shape = tf.as_dtype(dtype), tf.TensorShape(shape)
    if shape.rank is None or dtype in (tf.resource, tf.variant, tf.string):
        return 0
    return int(math.prod(1 if size is None else size for size in shape) * dtype.size)
