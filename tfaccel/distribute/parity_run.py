"""Runs a step in replicas and as one device, and restores all changed state."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import keras
import numpy as np
import tensorflow as tf

from tfaccel.distribute import _private, step
from tfaccel.distribute.batch_norm import is_synchronized
from tfaccel.distribute.batches import Part
from tfaccel.distribute.later_steps import later_values, names
from tfaccel.distribute.mixins import mix_in
from tfaccel.distribute.object_graph import reachable_objects
from tfaccel.distribute.reduction_rules import StepReductions
from tfaccel.distribute.replacements import Replacements
from tfaccel.distribute.single_device_context import run_on_one_device
from tfaccel.distribute.step_result import (
    HostState,
    ParityRunError,
    StepResult,
    TracedStep,
    flat_logs,
    tolerance,
    variables_of,
)
from tfaccel.distribute.sync_frequency import Frequency
from tfaccel.errors import CheckError, TfaccelError

_T = TypeVar("_T")
_PARTS = 1_000_000  # of a fraction that is sent as an integer
FIRST_REPLICA_ROWS, OTHER_REPLICA_ROWS = 4, 3


class ParityRun:
    """Runs a step of `model` in replicas and as one device; restores all on exit.

    Args:
        strategy: of tfaccel, of several replicas; its scope has been entered.
        model: compiled.
        fn: its bound `train_step` or `test_step`.
        batch: the first batch, as passed to `fit` or `train_on_batch`.
        few: whether to take a few rows of it, or all.

    Raises:
        ParityRunError: when the batch is too small, or cannot be split.
        CheckError: when a replica would not count by its part of the rows.
    """

    def __init__(
        self, strategy: Any, model: keras.Model, fn: Any, batch: Any, few: bool = True
    ) -> None:
        self.strategy, self.model, self._fn = strategy, model, fn
        self.replicas = strategy.placement.replicas
        self._parts = _some_rows(strategy, batch, few)
        self._whole = _all_rows(strategy, self._parts)
        self._equal_rows = not few and len(set(self.rows_of_replicas())) == 1
        self._variables = [*variables_of(model), *reachable_objects(model).raw]
        self._reference: StepResult | None = None
        self._saved: dict[int, tuple[Any, np.ndarray]] = {}
        self._later: list[tuple[Any, Any]] = []
        self._changed = ""
        self._traced_last: tuple[TracedStep, TracedStep] | None = None

    @property
    def tolerance(self) -> float:
        """The relative tolerance between two runs."""
        return tolerance(self.model)

    @property
    def where(self) -> str:
        """What is compared with one device, in words."""
        later = f" in a later step, after changes of {self._changed}" if self._changed else ""
        return f"on {self.replicas} replicas{later}"

    def __enter__(self) -> ParityRun:
        self._host = HostState(self.model)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore_variables()
        self._host.restore()

    def run(self, reductions: StepReductions) -> tuple[StepResult, StepResult]:
        """Runs the step in replicas, and once as one device.

        Returns:
            The results of replicas and of one device.

        Raises:
            ParityRunError: when one of them fails, on every worker.
        """
        with self._checking():
            traced = self._on_all_workers(lambda: self._both_traced(reductions))
            return self._on_all_workers(lambda: self._both_run(*traced))

    def run_later(self) -> tuple[StepResult, StepResult] | None:
        """Runs what `run` has run once more, as a later step may be (`later_steps.py`).

        Returns:
            As `run`; None where nothing would be another, or where one device cannot.
        """
        assert self._traced_last is not None
        replicated, single = self._traced_last
        copies_of = self.strategy.experimental_local_results
        self._later = later_values(self.model, self._saved.values(), copies_of)
        self._changed = names(self._later)
        try:
            if self.strategy.min_over_workers(len(self._later)) == 0:
                return None
            with self._checking():  # one device first: what fails in a replica breaks collectives
                alone = self._on_all_workers(lambda: self._result(single, self._whole, alone=True))
                return self._on_all_workers(lambda: self._result(replicated, self._parts)), alone
        except ParityRunError:
            return None
        finally:
            self._later = []  # of which `where` still tells

    @contextlib.contextmanager
    def _checking(self) -> Iterator[None]:
        with (
            _moving_statistics_used(self.model),
            _reduced_in_every_step(self.strategy),
            step.checking(self._equal_rows),
        ):
            yield

    def rows_of_replicas(self) -> list[int]:
        """How many rows each replica gets; every worker must call."""
        local_row_counts = [
            min(int(tf.shape(t)[0]) for t in _present(p.data)) for p in self._parts.values
        ]
        return [
            number for worker in self.strategy.gather_numbers(local_row_counts) for number in worker
        ]

    def _on_all_workers(self, call: Callable[[], _T]) -> _T:
        """The result of `call`; where it fails on one worker, all leave it with an error.

        Otherwise the others would wait in collectives that this worker does not join.
        """
        result, failed = None, None
        try:
            result = call()
        except TfaccelError:
            raise
        except Exception as error:
            failed = error
        if self.strategy.min_over_workers(int(failed is None)) == 0:
            reason = failed and f"{type(failed).__name__}: {failed}"
            raise ParityRunError(reason or "it fails on another worker") from failed
        return cast("_T", result)

    # --- tracing -------------------------------------------------------------------------------

    def _both_traced(self, reductions: StepReductions) -> tuple[TracedStep, TracedStep | None]:
        replicated = self._traced(lambda batch: self._replicated(batch, reductions), self._parts)
        alone = self._traced(self._single, self._whole) if self._reference is None else None
        single = self._traced_last[1] if self._traced_last and alone is None else alone
        self._traced_last = (replicated, single) if single else None
        return replicated, alone

    def _traced(self, fn: Any, data: Any) -> TracedStep:
        self._host.restore()
        return TracedStep(fn, data, eagerly=self.model.run_eagerly)

    def _replicated(self, batch: Any, reductions: StepReductions) -> Any:
        recorded: dict[int, list[Any]] = {}
        step_logs = self.strategy.run_step(
            self.model, self._fn, batch, reductions=reductions, recorded=recorded
        )
        return flat_logs(step_logs), recorded[min(recorded)]

    def _single(self, data: Any) -> Any:
        step_logs, recorded_gradients = run_on_one_device(self.strategy, self._fn, data.values[0])
        return flat_logs(step_logs), recorded_gradients

    # --- running -------------------------------------------------------------------------------

    def _both_run(
        self, replicated: TracedStep, single: TracedStep | None
    ) -> tuple[StepResult, StepResult]:
        self._save(replicated, single)
        result = self._result(replicated, self._parts)
        if single is not None:
            self._reference = self._result(single, self._whole, alone=True)
        assert self._reference is not None
        return result, self._reference

    def _result(self, traced: TracedStep, data: Any, alone: bool = False) -> StepResult:
        self._restore_variables()
        metrics = [v for m in self.model.metrics for v in m.variables]
        for variable in metrics:
            for own in self.strategy.experimental_local_results(variable.value):
                own.assign(tf.zeros_like(own))
        for own, value in self._later:
            own.assign(value)
        variables = self._variables
        before = [_read(v, self.strategy, alone) for v in variables]
        self._host.restore()
        seen = traced.run(data)
        after = [_read(v, self.strategy, alone) for v in variables]
        seen.add_changes(self.model, zip(variables, before, after, strict=True))
        self._restore_variables()
        return seen

    def _save(self, *traced: TracedStep | None) -> None:
        variables = [*map(_private.tf_variable, self._variables)]
        variables += [v for one in traced if one is not None for v in one.graph.variables]
        for variable in variables:
            for own in self.strategy.experimental_local_results(variable):
                if id(own) not in self._saved:
                    self._saved[id(own)] = own, own.read_value().numpy()

    def _restore_variables(self) -> None:
        for variable, value in self._saved.values():
            variable.assign(value)


@contextlib.contextmanager
def _reduced_in_every_step(strategy: Any) -> Iterator[None]:
    """Sends gradients uncompressed and in every step, as required to match one device."""
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
        if isinstance(layer, keras.layers.BatchNormalization) and not is_synchronized(layer):
            mix_in(layer, MovingStatistics)
    yield


def _some_rows(strategy: Any, batch: Any, few: bool) -> _private.PerReplicaBatch:
    """A few rows for each local replica, unequal; or all rows of the batch."""
    placement = strategy.placement
    if not isinstance(batch, _private.PerReplicaBatch):
        batch = strategy.shard(batch, multiples=True)  # what may not have them was refused before
    assert isinstance(batch, _private.PerReplicaBatch)
    if batch.has_empty_replicas:
        raise ParityRunError("there is a replica without rows")
    leaves = [_present(part.data) for part in batch.values]
    if any(not isinstance(t, tf.Tensor) for part in leaves for t in part):
        raise ParityRunError("the batch holds ragged or sparse tensors")
    if placement.workers > 1 and any(t.dtype == tf.string for t in leaves[0]):
        raise ParityRunError("the batch holds strings")
    _refuse_wrong_fractions(strategy, batch)
    if not few:
        # With static shapes, a step written for a fixed number of rows fails in tracing: an
        # operation that fails in one replica at run time breaks the collectives of all.
        return _private.PerReplicaBatch(batch.values, static_rows=True)
    least = [min(int(tf.shape(t)[0]) for t in part) for part in leaves]
    have = int(strategy.min_over_workers(min(least)))
    first = min(FIRST_REPLICA_ROWS, have)
    if first < 2:
        raise ParityRunError("a replica has one row")
    others = max(1, min(OTHER_REPLICA_ROWS, first - 1))
    rows = [first if replica == 0 else others for replica in range(placement.replicas)]
    parts = []
    for i, part in enumerate(batch.values):
        number = rows[placement.rank * placement.local + i]

        def some(t: Any, number: int = number, least: int = least[i]) -> Any:
            return None if t is None else t[: number * max(1, int(tf.shape(t)[0]) // max(1, least))]

        fraction = tf.constant(number / sum(rows), tf.float32)
        parts.append(Part(tf.nest.map_structure(some, part.data), fraction))
    return _private.PerReplicaBatch(parts)


def _refuse_wrong_fractions(strategy: Any, batch: _private.PerReplicaBatch) -> None:
    """Raises where a replica would not count by its part of all rows; every worker must call.

    The runs that are compared have other rows, and fractions of their own.
    """
    local: list[int] = []
    for data, fraction, real in batch.values:
        copies = 0 if real is None else int(tf.reduce_sum(tf.cast(~real, tf.int32)))
        sent = -1 if fraction is None else round(float(fraction) * _PARTS)
        local += [sent, *(int(tf.shape(t)[0]) - copies for t in _present(data))]
    numbers = np.concatenate(strategy.gather_numbers(local))
    sent, *rows_of_parts = numbers.reshape(strategy.placement.replicas, -1).T
    # A part with one row on each replica may be one that all share; others have several for one.
    several = [rows for rows in rows_of_parts if (rows != 1).any()] or rows_of_parts
    rows = min(several, key=sum)
    expected = rows / max(1, sum(rows))
    for replica, fraction in enumerate(sent / _PARTS):
        if fraction >= 0 and abs(fraction - expected[replica]) > 1e-4:
            raise CheckError(
                f"tfaccel: the first-step check found that replica {replica} would count for "
                f"{fraction:.6g} of the batch; expected {expected[replica]:.6g}, as it has "
                f"{rows[replica]} of {sum(rows)} rows; report it, or disable the check with "
                "check='off'."
            )


def _present(data: Any) -> list[Any]:
    return [leaf for leaf in tf.nest.flatten(data) if leaf is not None]


def global_order(placement: Any) -> list[int]:
    """The replicas in the order of their rows in the global batch (`batch_sharding.py`)."""
    return sorted(
        range(placement.replicas),
        key=lambda replica: (replica % placement.local, replica // placement.local),
    )


def _all_rows(strategy: Any, batch: _private.PerReplicaBatch) -> _private.PerReplicaBatch:
    """The rows of all replicas, in the order of the global batch."""
    placement = strategy.placement
    order = global_order(placement)

    def whole(*values: Any) -> Any:
        if values[0] is None:
            return None
        if placement.workers == 1:
            return tf.concat(values, axis=0)
        counts = _private.PerReplica(tuple(tf.shape(v)[:1] for v in values))
        rows = strategy.gather(counts, axis=0)
        parts = tf.split(strategy.gather(_private.PerReplica(values), axis=0), rows)
        return tf.concat([parts[replica] for replica in order], axis=0)

    data = tf.nest.map_structure(whole, *(part.data for part in batch.values))
    # As from a dataset: a varying number of rows is unknown in tracing.
    return _private.PerReplicaBatch([data], batch.static_rows)


def _read(variable: Any, strategy: Any, alone: bool) -> np.ndarray:
    """The value of a variable on the first local replica."""
    tf_variable = _private.tf_variable(variable)
    if alone:
        tf_variable = strategy.experimental_local_results(tf_variable)[0]
    value = tf.convert_to_tensor(tf_variable)
    return np.asarray(tf.cast(value, tf.float64) if value.dtype.is_floating else value)
