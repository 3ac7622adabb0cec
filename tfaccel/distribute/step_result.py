"""The results of a training step that the first-step check compares."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfaccel.distribute import _private, constant_random, logs
from tfaccel.distribute.double_precision import DoublePrecision
from tfaccel.distribute.optimizer import optimizers_of


class ParityRunError(Exception):
    """The step cannot be run for the check; it may still train."""


@dataclass
class StepResult:
    """The result of one run of a step.

    Attributes:
        gradients: for each call, names of variables and their gradients (None for none).
        logs: what it returned.
        outputs: its predictions.
        metrics: the change of each metric's variables, by path.
        state: variables without a gradient, by path: before and after.
        weights: variables with a gradient, likewise.
        slots: variables of optimizers, likewise; empty where `gradients` are known on both sides.
    """

    gradients: list[tuple[list[str], list[np.ndarray | None]]] = field(default_factory=list)
    logs: dict[str, np.ndarray] = field(default_factory=dict)
    outputs: dict[str, np.ndarray] = field(default_factory=dict)
    metrics: dict[str, np.ndarray] = field(default_factory=dict)
    state: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    weights: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    slots: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def add_changes(
        self,
        model: keras.Model,
        changes: Iterable[tuple[Any, np.ndarray, np.ndarray]],
        slots: bool = False,
    ) -> None:
        """Adds the changes of variables in a step.

        Args:
            model: whose step it was.
            changes: variables, and their values before and after it.
            slots: whether variables of optimizers are added too.
        """
        of_metrics = {id(v) for m in model.metrics for v in m.variables}
        of_optimizers = {id(v) for o in optimizers_of(model) for v in o.variables}
        # These count rows, or batches where rows are unknown; their means are among the logs.
        trackers = [*_private.loss_trackers(model), _private.loss_tracker(model)] if slots else []
        of_trackers = {id(v) for m in trackers if m is not None for v in m.variables}
        for variable, before, after in changes:
            if id(variable) in of_trackers:
                continue
            path = _variable_path(variable)
            if id(variable) in of_metrics:
                self.metrics[path] = after - before
            elif not np.issubdtype(after.dtype, np.number):
                continue
            elif id(variable) in of_optimizers:
                if slots:
                    self.slots[path] = before, after
            elif _private.tf_variable(variable).trainable:
                self.weights[path] = before, after
            elif "seed_generator_state" not in path:
                self.state[path] = before, after


class TracedStep:
    """A step as a graph in which random operations return constants.

    Args:
        fn: takes a batch; returns the results of the step, flat, and the gradients that its tapes
            took: pairs of the variables and the gradients of each call.
        data: a batch.
        eagerly: whether it runs as Python where it has no random operations: eager replicas take
            turns, and those of a graph are traced one after the other.

    Attributes:
        concrete: what was traced, as a concrete function.
        graph: that of it.
        random_ops: how many random operations it has.
    """

    def __init__(self, fn: Callable[[Any], Any], data: Any, eagerly: bool = False) -> None:
        self._names: list[list[str]] = []
        self.random_ops = 0
        self._fn = fn

        def traced(data: Any) -> Any:
            with (
                constant_random.constant_random_ops() as replaced,
                _inlined_functions(),
                tf.summary.record_if(False),
            ):
                step_logs, recorded = fn(data)
            self.random_ops = len(replaced)
            graph = tf.compat.v1.get_default_graph()
            self._names = [[_variable_path(v) for v in variables] for variables, _ in recorded]
            return step_logs, [
                [_dense_gradient(g, graph) for g in gradients] for _, gradients in recorded
            ]

        self._function = tf.function(traced, autograph=False)
        self.concrete = self._function.get_concrete_function(data)
        self.graph = self.concrete.graph
        self._eagerly = eagerly and not self.random_ops

    def run(self, data: Any) -> StepResult:
        """Runs the step; the result only has gradients and logs."""
        if not self._eagerly:
            return self._result(*self._function(data))
        with _inlined_functions(), tf.summary.record_if(False):
            step_logs, recorded = self._fn(data)
        return self._result(
            step_logs, [[_dense_gradient(g) for g in gradients] for _, gradients in recorded]
        )

    def run_in(self, double: DoublePrecision, data: Any) -> StepResult:
        """Runs it in double precision, which leaves its variables unchanged."""
        outputs = double(v for v in tf.nest.flatten(data, expand_composites=True) if v is not None)
        return self._result(*tf.nest.pack_sequence_as(self.concrete.structured_outputs, outputs))

    def _result(self, step_logs: Any, grads: Any) -> StepResult:
        result = StepResult(logs={name: np.asarray(value) for name, value in step_logs.items()})
        for variables, gradients in zip(self._names, grads, strict=True):
            result.gradients.append((variables, [_to_numpy(g) for g in gradients]))
        return result


class HostState:
    """Host state that a step may change: attributes of a model and its layers, random states."""

    def __init__(self, model: keras.Model) -> None:
        parts = {id(part): part for part in [model, *_private.layers_of(model)]}
        self._saved = [(part, dict(vars(part))) for part in parts.values()]
        self._random = random.getstate(), np.random.get_state()

    def restore(self) -> None:
        """Restores all of it."""
        for part, attributes in self._saved:
            _restore_attributes(part, attributes)
        random.setstate(self._random[0])
        np.random.set_state(self._random[1])


def variables_of(model: keras.Model) -> list[Any]:
    """The variables of a model, its metrics and its optimizers, each once."""
    variables = [*model.variables, *(v for m in model.metrics for v in m.variables)]
    variables += [v for o in optimizers_of(model) for v in o.variables]
    return list({id(v): v for v in variables}.values())


def tolerance(model: keras.Model) -> float:
    """The relative tolerance between two runs of a step of `model`."""
    dtypes = {layer.compute_dtype for layer in _private.layers_of(model)}
    return 5e-2 if dtypes & {"float16", "bfloat16"} else 2e-3


def flat_logs(step_logs: Any) -> dict[str, tf.Tensor]:
    """The results of a step, by name."""
    return {logs.name_of(path): tf.convert_to_tensor(v) for path, v in logs.leaves(step_logs)}


def flat_outputs(predicted: Any) -> dict[str, tf.Tensor]:
    """The results of a predict step, by index; without strings, which are not computed."""
    flat = [tf.convert_to_tensor(v) for v in keras.tree.flatten(predicted)]
    numbers = {str(i): v for i, v in enumerate(flat) if v.dtype != tf.string}
    return {i: tf.cast(v, tf.int32) if v.dtype.is_bool else v for i, v in numbers.items()}


def _restore_attributes(part: Any, attributes: dict[str, Any]) -> None:
    """Restores numbers and tensors that are attributes of `part`; other objects stay.

    Keras's own records of a layer built meanwhile stay too.
    """
    for name, value in list(vars(part).items()):
        if value is attributes.get(name, part) or name.startswith("_") or name == "built":
            continue
        if name not in attributes and _is_plain(value):
            object.__delattr__(part, name)
        elif name in attributes and _is_plain(attributes[name]):
            object.__setattr__(part, name, attributes[name])


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple, dict)) and value:
        return all(_is_plain(v) for v in tf.nest.flatten(value))
    return value is None or isinstance(value, (bool, int, float, str, tf.Tensor))


@contextlib.contextmanager
def _inlined_functions() -> Iterator[None]:
    """Inlines functions that a step calls into its own graph.

    A user's `tf.function` is traced once, and the trace is kept: it would contain the constants.
    """
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


def _dense_gradient(grad: Any, graph: Any = None) -> Any:
    """A gradient as a dense tensor, or an empty one if it is in a branch or loop.

    Args:
        grad: of a step.
        graph: of that step; None for an eager one.
    """
    if grad is None:
        return tf.zeros([0])
    values = grad if isinstance(grad, tf.Tensor) else grad.values
    if graph is not None and values.graph is not graph:
        return tf.zeros([0])
    return tf.convert_to_tensor(grad)


def _to_numpy(grad: tf.Tensor) -> np.ndarray | None:
    return None if grad.shape == [0] else np.asarray(tf.cast(grad, tf.float64))


def _variable_path(variable: Any) -> str:
    return str(getattr(variable, "path", None) or variable.name)
