"""Runs a predict step in replicas and as one device, to compare the predicted rows."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfaccel.distribute.parity_run import ParityRun, global_order
from tfaccel.distribute.reduction_rules import StepReductions
from tfaccel.distribute.single_device_context import run_on_one_device
from tfaccel.distribute.step_result import StepResult, TracedStep, flat_outputs


class PredictParityRun(ParityRun):
    """A `ParityRun` of a model's `predict_step`.

    A replica's rows are compared with the same rows of one device, by the worker that holds them.
    """

    def _replicated(self, batch: Any, reductions: StepReductions) -> Any:
        predicted = self.strategy.predicted(self.model, self._fn, batch, reductions.all_rows)
        results = self.strategy.experimental_local_results
        flat = [tf.concat(results(value), axis=0) for value in keras.tree.flatten(predicted)]
        return flat_outputs(flat), []

    def _single(self, data: Any) -> Any:
        predicted, _ = run_on_one_device(self.strategy, self._fn, data.values[0])
        return flat_outputs(predicted), []

    def _result(self, traced: TracedStep, data: Any, alone: bool = False) -> StepResult:
        result = super()._result(traced, data, alone)
        result.outputs, result.logs = result.logs, {}
        if alone:
            result.outputs = {name: self._local_rows(rows) for name, rows in result.outputs.items()}
        return result

    def _local_rows(self, rows: np.ndarray) -> np.ndarray:
        """The local replicas' expected predictions, from those of one device."""
        placement = self.strategy.placement
        first = placement.rank * placement.local
        local_replicas = range(first, first + placement.local)
        row_counts = self.rows_of_replicas()
        if len(rows) != sum(row_counts):
            return rows if first == 0 else rows[:0]  # no row for each of the batch: taken once
        order = global_order(placement)
        ends = np.cumsum([row_counts[replica] for replica in order])
        parts = dict(zip(order, np.split(rows, ends[:-1]), strict=True))
        return np.concatenate([parts[replica] for replica in local_replicas])
