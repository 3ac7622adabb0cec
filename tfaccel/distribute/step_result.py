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
    """The step cannot be run for the check; it may train all the same."""


@dataclass
class StepResult:
    """The result of one run of a step.

    Attributes:
        gradients: for each call, names of variables and their gradients (None for none).
        logs: what it returned.
        outputs: what it predicted.
        metrics: the change of each metric's variables, by path.
        state: variables without a gradient, by path: before and after.
        weights: variables with one, the same.
        slots: variables of optimizers, the same; empty where `gradients` are known on both sides.
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
        """Adds what a step made of variables.

        Args:
            model: whose step it was.
            changes: variables, and their values before and after it.
            slots: whether variables of optimizers are added too.
        """
        of_metrics = {id(v) for m in model.metrics for v in m.variables}
        of_optimizers = {id(v) for o in optimizers_of(model) for v in o.variables}
        # These count rows, or a batch where its rows are not known; their means are among the logs.
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
    """A step as a graph in which random operations give constants.

    Args:
        fn: takes a batch; returns the results of the step, flat, and the gradients that its tapes
            took: pairs of the variables and the gradients of each call.
        data: a batch.

    Attributes:
        concrete: what was traced, as a concrete function.
        graph: that of it.
        random_ops: how many random operations it has.
    """

    def __init__(self, fn: Callable[[Any], Any], data: Any) -> None:
        self._names: list[list[str]] = []
        self.random_ops = 0

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

    def run(self, data: Any) -> StepResult:
        """Runs the step; the result has gradients and logs alone."""
        return self._result(*self._function(data))

    def run_in(self, double: DoublePrecision, data: Any) -> StepResult:
        """Runs it in double precision, which leaves its variables as they are."""
        outputs = double(v for v in tf.nest.flatten(data, expand_composites=True) if v is not None)
        return self._result(*tf.nest.pack_sequence_as(self.concrete.structured_outputs, outputs))

    def _result(self, step_logs: Any, grads: Any) -> StepResult:
        result = StepResult(logs={name: np.asarray(value) for name, value in step_logs.items()})
        for variables, gradients in zip(self._names, grads, strict=True):
            result.gradients.append((variables, [_to_numpy(g) for g in gradients]))
        return result


class HostState:
    """What a step may leave on the host: attributes of a model and its layers, random states."""

    def __init__(self, model: keras.Model) -> None:
        parts = {id(part): part for part in [model, *_private.layers_of(model)]}
        self._saved = [(part, dict(vars(part))) for part in parts.values()]
        self._random = random.getstate(), np.random.get_state()

    def restore(self) -> None:
        """Makes all of it what it was."""
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
    """How far two runs of a step of `model` may be apart, relative."""
    dtypes = {layer.compute_dtype for layer in _private.layers_of(model)}
    return 5e-2 if dtypes & {"float16", "bfloat16"} else 2e-3


def flat_logs(step_logs: Any) -> dict[str, tf.Tensor]:
    """What a step returned, by name."""
    return {logs.name_of(path): tf.convert_to_tensor(v) for path, v in logs.leaves(step_logs)}


def flat_outputs(predicted: Any) -> dict[str, tf.Tensor]:
    """What a predict step returned, by number; without strings, which are not computed."""
    flat = [tf.convert_to_tensor(v) for v in keras.tree.flatten(predicted)]
    numbers = {str(i): v for i, v in enumerate(flat) if v.dtype != tf.string}
    return {i: tf.cast(v, tf.int32) if v.dtype.is_bool else v for i, v in numbers.items()}


def _restore_attributes(part: Any, attributes: dict[str, Any]) -> None:
    """Sets numbers and tensors that are attributes of `part` back; other objects stay.

    What Keras itself keeps of a layer that was built meanwhile stays too.
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
    """Makes what a step calls part of its own graph.

    A `tf.function` of the user's is traced once, and the trace kept: it would hold the constants.
    """
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


def _dense_gradient(grad: Any, graph: Any) -> Any:
    """A gradient as a dense tensor, or an empty one where it is in a branch or loop."""
    if grad is None:
        return tf.zeros([0])
    dense = grad if isinstance(grad, tf.Tensor) else None
    values = grad.values if dense is None else dense
    if values.graph is not graph:
        return tf.zeros([0])
    return tf.convert_to_tensor(grad)


def _to_numpy(grad: tf.Tensor) -> np.ndarray | None:
    return None if grad.shape == [0] else np.asarray(tf.cast(grad, tf.float64))


def _variable_path(variable: Any) -> str:
    return str(getattr(variable, "path", None) or variable.name)
