"""Runs a training step in replicas and as one device, and restores all it has changed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfaccel.distribute import _private, one_device, step
from tfaccel.distribute.adapt import adapt
from tfaccel.distribute.batches import (
    ABSENT,
    Sharded,
    ShardedWithEmpty,
    absent_to_none,
    per_replica,
)
from tfaccel.distribute.frequency import Frequency
from tfaccel.distribute.replacements import Replacements
from tfaccel.distribute.step_reductions import StepReductions
from tfaccel.distribute.step_result import (
    HostState,
    ParityRunError,
    StepResult,
    TracedStep,
    flat_logs,
    tolerance,
    variables_of,
)
from tfaccel.errors import TfaccelError

FIRST_REPLICA_ROWS, OTHER_REPLICA_ROWS = 4, 3


class ParityRun:
    """Runs a training step of `model` in replicas and as one device; restores all on exit.

    Args:
        strategy: of tfaccel, of several replicas; its scope has been entered.
        model: compiled.
        fn: its bound `train_step`.
        batch: the first batch, as `fit` or `train_on_batch` was given it.
        undersized: whether a few rows of it are taken, or all.

    Raises:
        ParityRunError: when the batch is too small, or of what cannot be split.
    """

    def __init__(
        self, strategy: Any, model: keras.Model, fn: Any, batch: Any, few: bool = True
    ) -> None:
        self.strategy, self.model, self._fn = strategy, model, fn
        self.replicas = strategy.placement.replicas
        self._parts = _some_rows(strategy, batch, few)
        self._whole = _all_rows(strategy, self._parts)
        self._reference: StepResult | None = None
        self._saved: dict[int, tuple[Any, np.ndarray]] = {}

    @property
    def tolerance(self) -> float:
        """How far two runs may be apart, relative."""
        return tolerance(self.model)

    @property
    def where(self) -> str:
        """What is compared with one device."""
        return f"on {self.replicas} replicas"

    def __enter__(self) -> ParityRun:
        self._host = HostState(self.model)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore_variables()
        self._host.restore()

    def run(self, reductions: StepReductions) -> tuple[StepResult, StepResult]:
        """Runs the step in replicas, and once as one device.

        Returns:
            What replicas make of it, and one device.

        Raises:
            ParityRunError: when one of them fails.
        """
        try:
            with (
                _moving_statistics_used(self.model),
                _reduced_in_every_step(self.strategy),
                step.checking(),
            ):
                replicated = self._traced(
                    lambda batch: self._replicated(batch, reductions), self._parts
                )
                single = None
                if self._reference is None:
                    single = self._traced(self._single, self._whole)
                self._save(replicated, single)
                replicated_result = self._result(replicated, self._parts)
                if single is not None:
                    self._reference = self._result(single, self._whole, alone=True)
        except TfaccelError:
            raise
        except Exception as error:
            raise ParityRunError(f"{type(error).__name__}: {error}") from error
        assert self._reference is not None
        return replicated_result, self._reference

    # --- tracing -------------------------------------------------------------------------------

    def _traced(self, fn: Any, data: Any) -> TracedStep:
        self._host.restore()
        return TracedStep(fn, data)

    def _replicated(self, batch: Any, reductions: StepReductions) -> Any:
        recorded: dict[int, list[Any]] = {}
        step_logs = self.strategy.run_step(
            self.model, self._fn, batch, reductions=reductions, recorded=recorded
        )
        return flat_logs(step_logs), recorded[min(recorded)]

    def _single(self, data: Any) -> Any:
        data = tf.nest.map_structure(lambda v: v.values[0] if v.values else None, data)
        step_logs, recorded_gradients = one_device.run(self.strategy, self._fn, data)
        return flat_logs(step_logs), recorded_gradients

    # --- running -------------------------------------------------------------------------------

    def _result(self, traced: TracedStep, data: Any, alone: bool = False) -> StepResult:
        self._restore_variables()
        metrics = [v for m in self.model.metrics for v in m.variables]
        for variable in metrics:
            for own in self.strategy.experimental_local_results(variable.value):
                own.assign(tf.zeros_like(own))
        variables = variables_of(self.model)
        before = [_read(v, self.strategy, alone) for v in variables]
        seen = traced.run(data)
        after = [_read(v, self.strategy, alone) for v in variables]
        seen.add_changes(self.model, zip(variables, before, after, strict=True))
        self._restore_variables()
        return seen

    def _save(self, *traced: TracedStep | None) -> None:
        found = [v.value for v in variables_of(self.model)]
        found += [v for one in traced if one is not None for v in one.graph.variables]
        for variable in found:
            for own in self.strategy.experimental_local_results(variable):
                if id(own) not in self._saved:
                    self._saved[id(own)] = own, own.read_value().numpy()

    def _restore_variables(self) -> None:
        for variable, value in self._saved.values():
            variable.assign(value)


@contextlib.contextmanager
def _reduced_in_every_step(strategy: Any) -> Iterator[None]:
    """Sends gradients uncompressed and in every step, without which they are not one device's."""
    with Replacements() as replacements:
        replacements.replace(strategy, "gradient_compression", None)
        replacements.replace(strategy, "frequency", Frequency())
        yield


class MovingStatistics:
    """Mixin for a BatchNormalization that normalises a replica's own rows."""

    def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        """Normalises; by the moving statistics while a step is checked."""
        training = False if step.is_checking() else training
        return super().call(inputs, training=training, mask=mask)  # type: ignore[misc]


@contextlib.contextmanager
def _moving_statistics_used(model: keras.Model) -> Iterator[None]:
    for layer in _private.layers_of(model):
        if isinstance(layer, keras.layers.BatchNormalization) and not layer.synchronized:
            adapt(layer, MovingStatistics)
    yield


def _some_rows(strategy: Any, batch: Any, few: bool) -> Sharded:
    """A few rows for each of our replicas, unequal; or all rows of the batch."""
    placement = strategy.placement
    if not isinstance(batch, (Sharded, ShardedWithEmpty)):
        batch = strategy.shard(batch)
    if isinstance(batch, ShardedWithEmpty) or not isinstance(
        batch.batch_fraction, tf.distribute.DistributedValues
    ):
        raise ParityRunError("there is a replica without rows")
    data = batch.data
    leaves = [v for v in tf.nest.flatten(data) if v is not None and v is not ABSENT]
    held = [v for v in leaves if getattr(v, "values", None)]
    if any(not isinstance(t, tf.Tensor) for v in held for t in v.values):
        raise ParityRunError("the batch holds ragged or sparse tensors")
    if placement.workers > 1 and any(t.dtype == tf.string for v in held for t in v.values):
        raise ParityRunError("the batch holds strings")
    if not few:
        return Sharded(*batch)
    have = min(int(tf.shape(t)[0]) for v in held for t in v.values)
    have = int(strategy.min_over_workers(have))
    first = min(FIRST_REPLICA_ROWS, have)
    if first < 2:
        raise ParityRunError("a replica has one row")
    others = max(1, min(OTHER_REPLICA_ROWS, first - 1))
    rows = [first if replica == 0 else others for replica in range(placement.replicas)]
    replicated_result = [rows[placement.rank * placement.local + i] for i in range(placement.local)]
    parts = []
    for i, number in enumerate(replicated_result):
        least = min(int(tf.shape(v.values[i])[0]) for v in held)

        def some(v: Any, i: int = i, n: int = number, least: int = least) -> Any:
            if v is None or not v.values:
                return None
            return v.values[i][: n * max(1, int(tf.shape(v.values[i])[0]) // max(1, least))]

        parts.append(tf.nest.map_structure(some, data))
    shares = tuple(tf.constant(n / sum(rows), tf.float32) for n in replicated_result)
    cut = per_replica(tuple(parts), _private.DynamicRows)
    return Sharded(cut, _private.DynamicRows(shares))


def _all_rows(strategy: Any, batch: Sharded) -> Any:
    """The rows of all replicas, in the order of the global batch (`batch_sharding.py`)."""
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
        kind = (
            _private.StaticRows if isinstance(value, _private.StaticRows) else _private.DynamicRows
        )
        return ABSENT if value is None else kind((whole(value),))

    return tf.nest.map_structure(alike, absent_to_none(batch.data))


def _read(variable: Any, strategy: Any, alone: bool) -> np.ndarray:
    """The value of a variable; alone, that of our first replica."""
    held = variable.value
    if alone:
        held = strategy.experimental_local_results(held)[0]
    value = tf.convert_to_tensor(held)
    return np.asarray(tf.cast(value, tf.float64) if value.dtype.is_floating else value)
