"""Runs a training step both ways, in replicas and as one device, and leaves nothing of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfaccel.distribute import _private, one_device, step
from tfaccel.distribute.adapt import adapt
from tfaccel.distribute.batches import NOTHING, Sharded, Starved, per_replica, without_nothing
from tfaccel.distribute.frequency import Frequency
from tfaccel.distribute.seen import (
    CannotRunError,
    HostState,
    Seen,
    Traced,
    flat,
    tolerance,
    variables_of,
)
from tfaccel.distribute.ways import Ways
from tfaccel.errors import TfaccelError

ROWS_OF_FIRST, ROWS_OF_OTHERS = 4, 3


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

    @property
    def tolerance(self) -> float:
        """How far two runs may be apart, relative."""
        return tolerance(self.model)

    @property
    def where(self) -> str:
        """What is compared with one device."""
        return f"on {self.replicas} replicas"

    def __enter__(self) -> Both:
        self._host = HostState(self.model)
        return self

    def __exit__(self, *error: object) -> None:
        self._set_back()
        self._host.set_back()

    def run(self, ways: Ways) -> tuple[Seen, Seen]:
        """Runs the step in replicas, and once as one device.

        Returns:
            What replicas make of it, and one device.

        Raises:
            CannotRunError: when one of them fails.
        """
        try:
            with _quiet(self.model), _in_every_step(self.strategy), step.checking():
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

    def _traced(self, fn: Any, data: Any) -> Traced:
        self._host.set_back()
        return Traced(fn, data)

    def _replicated(self, batch: Any, ways: Ways) -> Any:
        keeps: dict[int, list[Any]] = {}
        said = self.strategy.run_step(self.model, self._fn, batch, ways=ways, keeps=keeps)
        return flat(said), keeps[min(keeps)]

    def _single(self, data: Any) -> Any:
        data = tf.nest.map_structure(lambda v: v.values[0] if v.values else None, data)
        said, kept = one_device.run(self.strategy, self._fn, data)
        return flat(said), kept

    # --- running -------------------------------------------------------------------------------

    def _seen(self, traced: Traced, data: Any, alone: bool = False) -> Seen:
        self._set_back()
        metrics = [v for m in self.model.metrics for v in m.variables]
        for variable in metrics:
            for own in self.strategy.experimental_local_results(variable.value):
                own.assign(tf.zeros_like(own))
        variables = variables_of(self.model)
        before = [_read(v, self.strategy, alone) for v in variables]
        seen = traced.run(data)
        after = [_read(v, self.strategy, alone) for v in variables]
        seen.add_changes(self.model, zip(variables, before, after, strict=True))
        self._set_back()
        return seen

    def _save(self, *traced: Traced | None) -> None:
        found = [v.value for v in variables_of(self.model)]
        found += [v for one in traced if one is not None for v in one.graph.variables]
        for variable in found:
            for own in self.strategy.experimental_local_results(variable):
                if id(own) not in self._saved:
                    self._saved[id(own)] = own, own.read_value().numpy()

    def _set_back(self) -> None:
        for variable, value in self._saved.values():
            variable.assign(value)


@contextlib.contextmanager
def _in_every_step(strategy: Any) -> Iterator[None]:
    """Lets gradients travel as they are and in every step, where they would not be one device's."""
    wire, frequency = strategy.wire, strategy.frequency
    strategy.wire, strategy.frequency = None, Frequency()
    try:
        yield
    finally:
        strategy.wire, strategy.frequency = wire, frequency


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
        least = min(int(tf.shape(v.values[i])[0]) for v in held)

        def some(v: Any, i: int = i, n: int = number, least: int = least) -> Any:
            if v is None or not v.values:
                return None
            return v.values[i][: n * max(1, int(tf.shape(v.values[i])[0]) // max(1, least))]

        parts.append(tf.nest.map_structure(some, data))
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


def _read(variable: Any, strategy: Any, alone: bool) -> np.ndarray:
    """The value of a variable; alone, that of our first replica."""
    held = variable.value
    if alone:
        held = strategy.experimental_local_results(held)[0]
    value = tf.convert_to_tensor(held)
    return np.asarray(tf.cast(value, tf.float64) if value.dtype.is_floating else value)
