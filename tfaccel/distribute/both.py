"""Runs a training step both ways, in replicas and as one device, and leaves nothing of it."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfaccel.distribute import _private, draws, logs, one_device, step
from tfaccel.distribute.adapt import adapt
from tfaccel.distribute.batches import NOTHING, Sharded, Starved, per_replica, without_nothing
from tfaccel.distribute.optimizer import optimizers_of
from tfaccel.distribute.ways import Ways
from tfaccel.errors import TfaccelError

ROWS_OF_FIRST, ROWS_OF_OTHERS = 4, 3


class CannotRunError(Exception):
    """The step cannot be run for a look; it may train all the same."""


@dataclass
class Seen:
    """What a step did.

    Attributes:
        gradients: for each call, names of variables and their gradients (None for none).
        logs: what it returned.
        metrics: the change of each metric's variables, by path.
        state: variables without a gradient, by path: before and after.
        weights: variables with one, the same.
    """

    gradients: list[tuple[list[str], list[np.ndarray | None]]] = field(default_factory=list)
    logs: dict[str, np.ndarray] = field(default_factory=dict)
    metrics: dict[str, np.ndarray] = field(default_factory=dict)
    state: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    weights: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)


class Both:
    """A training step of `model`, to be run both ways; a context manager that sets all back.

    Args:
        strategy: of tfaccel, of several replicas; its scope has been entered.
        model: compiled.
        fn: its bound `train_step`.
        batch: the first batch, as `fit` or `train_on_batch` was given it.
        few: whether a few rows of it are taken, or all.

    Raises:
        CannotRunError: when the batch is too small, or of what cannot be cut.
    """

    def __init__(
        self, strategy: Any, model: keras.Model, fn: Any, batch: Any, few: bool = True
    ) -> None:
        self.strategy, self.model, self._fn = strategy, model, fn
        self.replicas = strategy.placement.replicas
        self._parts = _some_rows(strategy, batch, few)
        self._whole = _all_rows(strategy, self._parts)
        self._theirs: Seen | None = None
        self._saved: dict[int, tuple[Any, np.ndarray]] = {}
        self._held: list[tuple[Any, dict[str, Any]]] = []

    @property
    def tolerance(self) -> float:
        """How far two runs may be apart, relative."""
        dtypes = {layer.compute_dtype for layer in _private.layers_of(self.model)}
        return 5e-2 if dtypes & {"float16", "bfloat16"} else 2e-3

    def __enter__(self) -> Both:
        self._held = [(part, dict(vars(part))) for part in self._objects()]
        self._random = random.getstate(), np.random.get_state()
        return self

    def __exit__(self, *error: object) -> None:
        self._set_back()
        self._attributes_back()

    def _attributes_back(self) -> None:
        for part, attributes in self._held:
            _forget(part, attributes)
        random.setstate(self._random[0])
        np.random.set_state(self._random[1])

    def _objects(self) -> list[Any]:
        """The model and its layers: a step may keep a tensor or a count on them."""
        parts = {id(part): part for part in [self.model, *_private.layers_of(self.model)]}
        return list(parts.values())

    def run(self, ways: Ways) -> tuple[Seen, Seen]:
        """Runs the step in replicas, and once as one device.

        Returns:
            What replicas make of it, and one device.

        Raises:
            CannotRunError: when one of them fails.
        """
        try:
            with _quiet(self.model), step.checking():
                replicated = self._traced(lambda batch: self._replicated(batch, ways), self._parts)
                single = None
                if self._theirs is None:
                    single = self._traced(self._single, self._whole)
                self._save(replicated, single)
                ours = self._seen(replicated, self._parts)
                if single is not None:
                    self._theirs = self._seen(single, self._whole, alone=True)
        except TfaccelError:
            raise
        except Exception as error:
            raise CannotRunError(f"{type(error).__name__}: {error}") from error
        assert self._theirs is not None
        return ours, self._theirs

    # --- tracing -------------------------------------------------------------------------------

    def _traced(self, fn: Any, data: Any) -> Any:
        names: list[list[str]] = []
        self._attributes_back()

        def traced(data: Any) -> Any:
            with draws.constant(), _functions_inline(), tf.summary.record_if(False):
                said, kept = fn(data)
            graph = tf.compat.v1.get_default_graph()
            names[:] = [[_path(v) for v in variables] for variables, _ in kept]
            grads = [[_returned(g, graph) for g in taken] for _, taken in kept]
            return said, grads

        function = tf.function(traced, autograph=False)
        graph = function.get_concrete_function(data).graph
        return function, names, graph

    def _replicated(self, batch: Any, ways: Ways) -> Any:
        keeps: dict[int, list[Any]] = {}
        said = self.strategy.run_step(self.model, self._fn, batch, ways=ways, keeps=keeps)
        return dict(_flat(said)), keeps[min(keeps)]

    def _single(self, data: Any) -> Any:
        data = tf.nest.map_structure(lambda v: v.values[0] if v.values else None, data)
        said, kept = one_device.run(self.strategy, self._fn, data)
        return dict(_flat(said)), kept

    # --- running -------------------------------------------------------------------------------

    def _seen(self, traced: Any, data: Any, alone: bool = False) -> Seen:
        function, names, _ = traced
        self._set_back()
        metrics = [v for m in self.model.metrics for v in m.variables]
        for variable in metrics:
            for own in self.strategy.experimental_local_results(variable.value):
                own.assign(tf.zeros_like(own))
        before = {id(v): _read(v, self.strategy, alone) for v in self._variables()}
        said, grads = function(data)
        seen = Seen(logs={name: np.asarray(value) for name, value in said.items()})
        for variables, taken in zip(names, grads, strict=True):
            seen.gradients.append((variables, [_numbers(g) for g in taken]))
        of_metrics = {id(v) for v in metrics}
        of_optimizers = {id(v) for o in optimizers_of(self.model) for v in o.variables}
        for variable in self._variables():
            was, now = before[id(variable)], _read(variable, self.strategy, alone)
            if id(variable) in of_metrics:
                seen.metrics[variable.path] = now - was
            elif id(variable) in of_optimizers or not np.issubdtype(now.dtype, np.number):
                continue
            elif variable.value.trainable:
                seen.weights[variable.path] = was, now
            elif "seed_generator_state" not in variable.path:
                seen.state[variable.path] = was, now
        self._set_back()
        return seen

    def _variables(self) -> list[Any]:
        model = self.model
        held = [*model.variables, *(v for m in model.metrics for v in m.variables)]
        held += [v for o in optimizers_of(model) for v in o.variables]
        return list({id(v): v for v in held}.values())

    def _save(self, *traced: Any) -> None:
        found = [v.value for v in self._variables()]
        found += [v for one in traced if one is not None for v in one[2].variables]
        for variable in found:
            for own in self.strategy.experimental_local_results(variable):
                if id(own) not in self._saved:
                    self._saved[id(own)] = own, own.read_value().numpy()

    def _set_back(self) -> None:
        for variable, value in self._saved.values():
            variable.assign(value)


def _forget(part: Any, attributes: dict[str, Any]) -> None:
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
def _functions_inline() -> Iterator[None]:
    """Makes what a step calls part of its own graph.

    A `tf.function` of the user's is traced once, and the trace kept: it would hold our constants.
    """
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


class MovingStatistics:
    """Mixin for a BatchNormalization that normalises a replica's own rows."""

    def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        """Normalises; by the moving statistics while a step is checked."""
        training = False if step.is_checking() else training
        return super().call(inputs, training=training, mask=mask)  # type: ignore[misc]


@contextlib.contextmanager
def _quiet(model: keras.Model) -> Iterator[None]:
    for layer in _private.layers_of(model):
        if isinstance(layer, keras.layers.BatchNormalization) and not layer.synchronized:
            adapt(layer, MovingStatistics)
    yield


def _some_rows(strategy: Any, batch: Any, few: bool) -> Sharded:
    """A few rows for each of our replicas, unequal; or all rows of the batch."""
    placement = strategy.placement
    if not isinstance(batch, (Sharded, Starved)):
        batch = strategy.cut(batch)
    if isinstance(batch, Starved) or not isinstance(batch.share, tf.distribute.DistributedValues):
        raise CannotRunError("there is a replica without rows")
    data = batch.data
    leaves = [v for v in tf.nest.flatten(data) if v is not None and v is not NOTHING]
    held = [v for v in leaves if getattr(v, "values", None)]
    if any(not isinstance(t, tf.Tensor) for v in held for t in v.values):
        raise CannotRunError("the batch holds ragged or sparse tensors")
    if placement.workers > 1 and any(t.dtype == tf.string for v in held for t in v.values):
        raise CannotRunError("the batch holds strings")
    if not few:
        return Sharded(*batch)
    have = min(int(tf.shape(t)[0]) for v in held for t in v.values)
    have = int(strategy.least(have))
    first = min(ROWS_OF_FIRST, have)
    if first < 2:
        raise CannotRunError("a replica has one row")
    others = max(1, min(ROWS_OF_OTHERS, first - 1))
    rows = [first if replica == 0 else others for replica in range(placement.replicas)]
    ours = [rows[placement.rank * placement.local + i] for i in range(placement.local)]
    parts = []
    for i, number in enumerate(ours):
        parts.append(
            tf.nest.map_structure(
                lambda v, i=i, n=number: None if v is None or not v.values else v.values[i][:n],
                data,
            )
        )
    shares = tuple(tf.constant(n / sum(rows), tf.float32) for n in ours)
    cut = per_replica(tuple(parts), _private.AnyRows)
    return Sharded(cut, _private.AnyRows(shares))


def _all_rows(strategy: Any, batch: Sharded) -> Any:
    """The rows of all replicas, in the order of the global batch (`split.py`)."""
    placement = strategy.placement
    order = sorted(
        range(placement.replicas),
        key=lambda replica: (replica % placement.local, replica // placement.local),
    )

    def whole(value: Any) -> Any:
        if placement.workers == 1:
            return tf.concat(value.values, axis=0)
        counts = _private.PerReplica(tuple(tf.shape(v)[:1] for v in value.values))
        rows = strategy.gather(counts, axis=0)
        parts = tf.split(strategy.gather(_private.PerReplica(value.values), axis=0), rows)
        return tf.concat([parts[replica] for replica in order], axis=0)

    def alike(value: Any) -> Any:
        # As of a dataset: a number of rows that varies is not known when the step is traced.
        kind = _private.FixedRows if isinstance(value, _private.FixedRows) else _private.AnyRows
        return NOTHING if value is None else kind((whole(value),))

    return tf.nest.map_structure(alike, without_nothing(batch.data))


def _flat(said: Any) -> list[tuple[str, tf.Tensor]]:
    return [(logs.name_of(path), tf.convert_to_tensor(v)) for path, v in logs.leaves(said)]


def _returned(grad: Any, graph: Any) -> Any:
    """A gradient as a dense tensor, or an empty one where it is in a branch or loop."""
    if grad is None:
        return tf.zeros([0])
    dense = grad if isinstance(grad, tf.Tensor) else None
    held = grad.values if dense is None else dense
    if held.graph is not graph:
        return tf.zeros([0])
    return tf.convert_to_tensor(grad)


def _numbers(grad: tf.Tensor) -> np.ndarray | None:
    return None if grad.shape == [0] else np.asarray(tf.cast(grad, tf.float64))


def _path(variable: Any) -> str:
    return str(getattr(variable, "path", None) or variable.name)


def _read(variable: Any, strategy: Any, alone: bool) -> np.ndarray:
    """The value of a variable; alone, that of our first replica."""
    held = variable.value
    if alone:
        held = strategy.experimental_local_results(held)[0]
    value = tf.convert_to_tensor(held)
    return np.asarray(tf.cast(value, tf.float64) if value.dtype.is_floating else value)
