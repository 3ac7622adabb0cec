"""The single-device step that a mesh's is compared with: on the host, on copies of variables."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfaccel.distribute import gradients
from tfaccel.distribute.double_precision import DoublePrecision
from tfaccel.distribute.model_parallel.host_copies import HostCopies
from tfaccel.distribute.model_parallel.layer_attribution import layer_outputs
from tfaccel.distribute.rounding import backward_error, moved_at_random
from tfaccel.distribute.step_result import (
    HostState,
    ParityRunError,
    StepResult,
    TracedStep,
    flat_logs,
    flat_outputs,
)

MAX_BYTES = 8 << 30  # of all tensors in one device's step, with the variables
_MOST_OTHERS = 8


class HostParityRun:
    """A step of `model` as one device takes it; leaves no side effects.

    Args:
        strategy: of the mesh.
        model: whose step it is.
        kind: of the step: ``"train"``, ``"test"`` or ``"predict"``.
        variable_pairs: Keras's variables and TensorFlow's, and the variables of the mesh behind
            them.
        data: a batch, on the host.
        limited: whether to skip steps too large for one device.

    Raises:
        ParityRunError: when it is too large.
    """

    def __init__(
        self,
        strategy: Any,
        model: Any,
        kind: str,
        variable_pairs: list[tuple[Any, Any]],
        data: Any,
        limited: bool,
    ) -> None:
        self._strategy, self._model, self._kind = strategy, model, kind
        self._variable_pairs, self._data, self._limited = variable_pairs, data, limited
        self._copies = HostCopies(lambda: [v for _, v in variable_pairs])
        self._traced: TracedStep | None = None
        self._refuse_large(sum(_bytes(v.dtype, v.shape) for _, v in variable_pairs))

    def in_single_precision(self) -> StepResult:
        """Its results.

        Raises:
            ParityRunError: when it is too large, or fails.
        """
        with self._on_copies():
            traced = self._step()
            before = self._values_of_copies()
            with _graph_optimizer_off():
                result = self._result(traced.run(self._data))
            self._add_changes(result, before, self._values_of_copies())
        return result

    def in_double_precision(self) -> Iterator[StepResult]:
        """Its results without rounding; then from inputs perturbed by as much as rounding would.

        Raises:
            ParityRunError: when it is too large, or has operations that do not support float64.
        """
        with self._on_copies():
            traced = self._step(factor=2)
            double = DoublePrecision(traced.concrete)
            rows = max((len(t) for t in tf.nest.flatten(self._data) if _has_rows(t)), default=1)
            size = backward_error(traced.graph, rows)
        for seed in range(1 + _MOST_OTHERS):
            with self._on_copies():
                double.restart(moved_at_random(size, seed) if seed else tf.identity)
                before = self._values_of_copies()
                with _graph_optimizer_off():
                    result = self._result(traced.run_in(double, self._data))
                copies = [self._copies.of(v) for _, v in self._variable_pairs]
                computed = [double.value_of(copy) for copy in copies]
                after = [b if a is None else a for a, b in zip(computed, before, strict=True)]
                self._add_changes(result, before, after)
            yield result

    def layers(self) -> dict[str, np.ndarray]:
        """The output of each layer.

        Raises:
            ParityRunError: when it fails.
        """

        def given(data: Any) -> Any:
            with tf.device("/CPU:0"):
                run = functools.partial(layer_outputs, self._model, self._kind)
                return self._strategy.as_one_device(run, data), []

        with self._on_copies():
            return TracedStep(given, self._data).run(self._data).logs

    @contextlib.contextmanager
    def _on_copies(self) -> Iterator[None]:
        host_state = HostState(self._model)
        gradients.install()
        try:
            with self._strategy.scope(), self._copies.used(put_back=False):
                yield
        except ParityRunError:
            raise
        except Exception as error:
            raise ParityRunError(f"{type(error).__name__}: {error}") from error
        finally:
            host_state.restore()

    def _values_of_copies(self) -> list[np.ndarray]:
        return [as_array(self._copies.of(v).value()) for _, v in self._variable_pairs]

    def _add_changes(
        self, result: StepResult, before: list[np.ndarray], after: list[np.ndarray]
    ) -> None:
        changes = zip([v for v, _ in self._variable_pairs], before, after, strict=True)
        result.add_changes(self._model, changes, slots=True)

    def _step(self, factor: int = 1) -> TracedStep:
        if self._traced is None:
            self._traced = TracedStep(self._run, self._data)
            self._refuse_other_random_ops(self._traced)
        self._refuse_large(factor * _graph_bytes(self._traced.graph))
        return self._traced

    def _run(self, data: Any) -> Any:
        step = getattr(self._model, f"{self._kind}_step")
        with tf.device("/CPU:0"), gradients.recorded() as recorded:
            returned = self._strategy.as_one_device(step, data)
            flat = flat_outputs if self._kind == "predict" else flat_logs
            return flat(returned), recorded

    def _result(self, result: StepResult) -> StepResult:
        """A result in which a step's predictions are distinguished from logs."""
        if self._kind == "predict":
            result.outputs, result.logs = result.logs, {}
        return result

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
    """Leaves a graph that runs once unoptimized: optimizing takes longer than running it."""
    before = tf.config.optimizer.get_experimental_options().get("disable_meta_optimizer", False)
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": before})


def as_array(value: Any) -> np.ndarray:
    """A host tensor, or a number, as an array; floating-point ones as float64."""
    array = np.asarray(value)
    return array.astype("float64") if tf.as_dtype(array.dtype).is_floating else array


def _has_rows(value: Any) -> bool:
    return value is not None and bool(value.shape.rank)


def _graph_bytes(graph: Any) -> int:
    """The bytes of all tensors of a graph, as far as their shapes are known."""
    return sum(_bytes(t.dtype, t.shape) for op in graph.get_operations() for t in op.outputs)


def _bytes(dtype: Any, shape: Any) -> int:
    dtype, shape = tf.as_dtype(dtype), tf.TensorShape(shape)
    if shape.rank is None or dtype in (tf.resource, tf.variant, tf.string):
        return 0
    return int(math.prod(1 if size is None else size for size in shape) * dtype.size)
