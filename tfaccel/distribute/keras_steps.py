"""Runs a step of a Keras model on every replica, and combines the results."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from tfaccel.distribute import (
    _private,
    build,
    logs,
    non_trainable,
    padding,
    replica_collectives,
    replicated_batch,
    scope,
    step,
)
from tfaccel.distribute.batch_sharding import Placement
from tfaccel.distribute.batches import Part, sharded_by_tensorflow
from tfaccel.distribute.compression import Compression
from tfaccel.distribute.compression.powersgd import PowerSGD
from tfaccel.distribute.first_step_check import Checks
from tfaccel.distribute.gradients import Gradients
from tfaccel.distribute.local_steps import ModelAveraging
from tfaccel.distribute.reduction_rules import StepReductions
from tfaccel.distribute.replica_attributes import ReplicaAttributes
from tfaccel.distribute.stateful_layers import aggregate_states, keeps_states
from tfaccel.distribute.sync_frequency import Frequency


class RunsKerasSteps:
    """Mixin for a `tf.distribute.Strategy`, a part of `KerasFit`."""

    extended: Any
    partial_batch: str
    frequency: Frequency
    gradient_compression: Compression | None

    if TYPE_CHECKING:

        @property
        def placement(self) -> Placement:
            """Which of all replicas run in this process."""

        @property
        def checks(self) -> Checks:
            """The first-step checks of this strategy."""

        def _check(self, model: keras.Model, fn: Any) -> None: ...

        def _refuse_stateful(self, model: keras.Model) -> None: ...

    def run_predict_step(
        self, fn: Any, batch: _private.PerReplicaBatch, host_batch: Any, kwargs: Any, options: Any
    ) -> Any:
        """Runs a predict step: no loss, only rows to combine, and states of the user's layers."""
        model = _private.predicting_model()
        if host_batch is not None and model is not None:
            scope.check(model, self)
            build.for_method(model, "predict_on_batch", build.specs(host_batch), self)
        if model is not None:
            self._refuse_stateful(model)
            aggregate_states(model)
            self._check(model, model.predict_step)
        has_real = batch.values[0].real is not None
        whole = batch.first_has_all
        gathers = model is not None and self.checks.reductions(model, "predict").all_rows
        predicted = self.predicted(model, fn, batch, gathers and not whole, kwargs, options)
        if not has_real:
            return predicted
        real = [part.real for part in batch.values]
        return tf.nest.map_structure(lambda v: self._drop_padding(v, real), predicted)

    def predicted(
        self,
        model: keras.Model | None,
        fn: Any,
        batch: _private.PerReplicaBatch,
        all_rows: bool,
        kwargs: Any = None,
        options: Any = None,
    ) -> Any:
        """Each replica's predictions for its rows.

        Args:
            model: that predicts; None if it is unknown.
            fn: a predict step.
            batch: sharded over the replicas.
            all_rows: whether the step gets the rows of all replicas.
            kwargs: of `run`.
            options: of `run`.
        """
        equal = all_rows and replicated_batch.has_equal_parts(batch, self.placement.workers)
        combines = model is not None and keeps_states(model) and not all_rows

        def replica_step(part: Part, **kwargs: Any) -> Any:
            if all_rows:
                return replicated_batch.predict(fn, part.data, part.real, equal)
            if not combines:
                return fn(part.data, **kwargs)
            fraction = part.batch_fraction
            step_context = step.StepContext(
                step.batch_fraction_of(part.data) if fraction is None else fraction,
                batch.has_empty_replicas,
                batch.first_has_all,
                real=part.real,
                rows=step.known_rows(part.data),
            )
            replica_collectives.adapt_context()
            with step.entered(step_context):
                return fn(part.data, **kwargs)

        return super().run(replica_step, (batch,), kwargs, options)  # type: ignore[misc]

    def run_step(
        self,
        model: keras.Model,
        fn: Any,
        batch: _private.PerReplicaBatch,
        reductions: StepReductions,
        recorded: dict[int, list[Any]] | None = None,
        kwargs: Any = None,
        options: Any = None,
    ) -> Any:
        """Runs a step of a Keras model on every replica, and combines their results.

        Args:
            model: prepared.
            fn: its bound `train_step` or `test_step`.
            batch: sharded over the replicas.
            reductions: how the step is combined.
            recorded: collects the gradients that each local replica takes, by its index.
            kwargs: of `run`.
            options: of `run`.
        """
        training = getattr(fn, "__name__", "") == "train_step"
        has_empty_replicas = batch.has_empty_replicas
        has_global_batch = batch.first_has_all
        averaging = self.averaging(model) if training and self.frequency.local_steps > 1 else None
        gathers = reductions.all_rows and not has_global_batch
        equal = gathers and replicated_batch.has_equal_parts(batch, self.placement.workers)
        statistics = non_trainable.statistics(model) if training else ()

        def replica_step(part: Part) -> Any:
            data, batch_fraction, real = part
            if batch_fraction is None:
                batch_fraction = step.batch_fraction_of(data)
            if gathers:
                data, batch_fraction, real = replicated_batch.gather(
                    data, batch_fraction, real, equal
                )
            step_context = step.StepContext(
                batch_fraction,
                has_empty_replicas or gathers,
                has_global_batch or gathers,
                independent=averaging is not None,
                real=real,
                rows=step.known_rows(data),
                averages_statistics=training,
                gradients=self._gradients() if training else None,
                reductions=reductions,
                recorded=None if recorded is None else [],
            )
            replica_collectives.adapt_context()
            with step.entered(step_context) as ctx:
                averaged = non_trainable.StatisticsAverager(statistics)
                counted = non_trainable.CountedOnce(model) if ctx.has_global_batch else None
                with non_trainable.replica_seeds(self.extended.seeds()):
                    step_logs = fn(data)
                if counted is not None:
                    counted.assign(ctx)
                if averaging is not None:
                    averaging.after_step()
                if recorded is not None:
                    recorded[replica_collectives.local_replica_id()] = list(ctx.recorded or ())
                return logs.merge_logs(model, step_logs, ctx, averaged)

        attributes = None
        if (tf.executing_eagerly() or step.is_checking()) and self.placement.local > 1:
            attributes = ReplicaAttributes([model, *_private.layers_of(model)])

        wrapped_step = replica_step if attributes is None else attributes.wrap(replica_step)
        merged = super().run(wrapped_step, (batch,), kwargs, options)  # type: ignore[misc]
        if attributes is not None:
            attributes.end()
        return tf.nest.map_structure(self._first_merged, merged)

    def _gradients(self) -> Gradients | None:
        """The object that takes the gradients of one step."""
        if self.frequency.local_steps > 1:
            return None
        together = self.frequency.gradient_accumulation != "local" and not isinstance(
            self.gradient_compression, PowerSGD
        )
        return Gradients(reduces=together)

    def reduce(self, reduce_op: Any, value: Any, axis: Any = None) -> Any:
        """Reduces `value` over replicas; values merged by a Keras step are unchanged."""
        # Keras averages one batch only to learn its shapes.
        if isinstance(value, _private.PerReplicaBatch):
            return tf.nest.map_structure(_spec, value.values[0].data)
        if isinstance(value, (tuple, list, dict)):
            batch = sharded_by_tensorflow(value, self.placement)
            return tf.nest.map_structure(_spec, batch.values[0].data)
        if logs.is_merged(value):
            return value
        return super().reduce(reduce_op, value, axis)  # type: ignore[misc]

    def _drop_padding(self, value: Any, real: Any) -> Any:
        """The predictions for rows that are not copies, in the form Keras concatenates."""
        predicted = self.experimental_local_results(value)  # type: ignore[attr-defined]
        rows = padding.drop_padding(predicted, real)
        return _private.PerReplica(rows) if self.placement.workers > 1 else tf.concat(rows, axis=0)

    def _first_merged(self, value: Any) -> tf.Tensor:
        """A log for Keras: the same on every replica."""
        return logs.mark_merged(self.experimental_local_results(value)[0])  # type: ignore[attr-defined]

    def averaging(self, model: keras.Model) -> ModelAveraging:
        """The object that averages the replicas of `model` with `local_steps`."""
        by_model = vars(self).setdefault("_averagings", weakref.WeakKeyDictionary())
        if model not in by_model:
            by_model[model] = ModelAveraging(model, self, self.frequency.local_steps)
        averaging: ModelAveraging = by_model[model]
        return averaging

    def state_variables(self, model: keras.Model) -> list[tf.Variable]:
        """The variables of this strategy with state of a run of `model`, in a fixed order."""
        variables = list(getattr(self.gradient_compression, "variables", ()))
        if self.frequency.local_steps > 1:
            variables.append(self.averaging(model).steps_alone)
        return variables


def _spec(value: Any) -> Any:
    return None if value is None else tf.TensorSpec([None, *value.shape[1:]], value.dtype)
