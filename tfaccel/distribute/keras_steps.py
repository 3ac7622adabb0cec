"""Runs a step of a Keras model on every replica, and combines what the replicas make of it."""

from __future__ import annotations

import functools
import weakref
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from tfaccel.distribute import (
    _private,
    build,
    context,
    logs,
    non_trainable,
    padding,
    replicated_batch,
    scope,
    step,
)
from tfaccel.distribute.batch_sharding import Placement
from tfaccel.distribute.batches import Sharded, ShardedWithEmpty, absent_to_none
from tfaccel.distribute.check import Checks
from tfaccel.distribute.compression import Compression
from tfaccel.distribute.compression.powersgd import PowerSGD
from tfaccel.distribute.frequency import Frequency
from tfaccel.distribute.gradients import Gradients, is_custom_step
from tfaccel.distribute.local_steps import ModelAveraging
from tfaccel.distribute.replica_attributes import ReplicaAttributes
from tfaccel.distribute.step_reductions import StepReductions


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

    def run_predict_step(
        self, fn: Any, batch: Sharded | ShardedWithEmpty, given: Any, kwargs: Any, options: Any
    ) -> Any:
        """Runs a predict step: no loss, no state, nothing to combine but the rows."""
        model = _private.predicting_model()
        if given is not None and model is not None:
            scope.check(model, self)
            build.for_method(model, "predict_on_batch", build.specs(given), self)
        args: tuple[Any, ...] = (batch.data,)
        has_real = not isinstance(batch.real, tuple)
        # Of a last batch of few rows every replica has all.
        whole = isinstance(batch, ShardedWithEmpty) and has_real
        if model is not None and self.checks.reductions(model).all_rows and not whole:
            fn = functools.partial(replicated_batch.predict, fn)
            args = (batch.data, batch.real if has_real else None)
        predicted = super().run(fn, args, kwargs, options)  # type: ignore[misc]
        if not has_real:
            return predicted
        real = self.experimental_local_results(batch.real)  # type: ignore[attr-defined]
        return tf.nest.map_structure(lambda v: self._drop_padding(v, real), predicted)

    def run_step(
        self,
        model: keras.Model,
        fn: Any,
        batch: Sharded | ShardedWithEmpty,
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
            recorded: where to leave the gradients that each of our replicas takes, by its number.
            kwargs: of `run`.
            options: of `run`.
        """
        training = getattr(fn, "__name__", "") == "train_step"
        has_empty_replicas = isinstance(batch, ShardedWithEmpty)
        has_global_batch = (
            has_empty_replicas
            and self.partial_batch == "exact"
            and not isinstance(batch.real, tuple)
        )
        averaging = self.averaging(model) if training and self.frequency.local_steps > 1 else None
        gathers = reductions.all_rows and not has_global_batch

        def replica_step(data: Any, batch_fraction: tf.Tensor, real: Any) -> Any:
            batch_fraction = (
                step.batch_fraction_of(data) if batch_fraction is None else batch_fraction
            )
            real = None if isinstance(real, tuple) else real
            if gathers:
                data, batch_fraction, real = replicated_batch.gather(data, batch_fraction, real)
            ours = step.StepContext(
                batch_fraction,
                has_empty_replicas or gathers,
                has_global_batch or gathers,
                independent=averaging is not None,
                real=real,
                rows=step.known_rows(data),
                averages_statistics=training,
                gradients=self._gradients(fn) if training else None,
                reductions=reductions,
                recorded=None if recorded is None else [],
            )
            context.adapt_context()
            with step.entered(ours) as ctx:
                averaged = non_trainable.StatisticsAverager(
                    non_trainable.statistics(model) if training else ()
                )
                counted = non_trainable.CountedOnce(model) if ctx.has_global_batch else None
                with non_trainable.replica_seeds(self.extended.seeds()):
                    step_logs = fn(data)
                if counted is not None:
                    counted.assign(ctx)
                if averaging is not None:
                    averaging.after_step()
                if recorded is not None:
                    recorded[context.local_replica_id()] = list(ctx.recorded or ())
                return logs.merge_logs(model, step_logs, ctx, averaged)

        batch = batch._replace(data=absent_to_none(batch.data))
        attributes = None
        if (tf.executing_eagerly() or step.is_checking()) and self.placement.local > 1:
            attributes = ReplicaAttributes([model, *_private.layers_of(model)])

        wrapped_step = replica_step if attributes is None else attributes.wrap(replica_step)
        merged = super().run(wrapped_step, tuple(batch), kwargs, options)  # type: ignore[misc]
        if attributes is not None:
            attributes.end()
        return tf.nest.map_structure(self._mark_merged, merged)

    def _gradients(self, fn: Any) -> Gradients | None:
        """What takes the gradients of a step that is not Keras's own."""
        if self.frequency.local_steps > 1 or not is_custom_step(fn):
            return None
        together = self.frequency.gradient_accumulation != "local" and not isinstance(
            self.gradient_compression, PowerSGD
        )
        return Gradients(reduces=together)

    def reduce(self, reduce_op: Any, value: Any, axis: Any = None) -> Any:
        """Reduces `value` over replicas; values that a Keras step has merged come back as is."""
        if isinstance(value, (tuple, list, dict)):
            # Keras averages one batch only to learn its shapes.
            batch = value.data if isinstance(value, (Sharded, ShardedWithEmpty)) else value
            return tf.nest.map_structure(self._spec, absent_to_none(batch))
        if isinstance(value, tf.Tensor) and getattr(value, "_tfaccel_merged", False):
            return value
        return super().reduce(reduce_op, value, axis)  # type: ignore[misc]

    def _drop_padding(self, value: Any, real: Any) -> Any:
        """What was predicted of rows that are no copies, as Keras puts it together."""
        predicted = self.experimental_local_results(value)  # type: ignore[attr-defined]
        cut = padding.drop_padding(predicted, real)
        return _private.PerReplica(cut) if self.placement.workers > 1 else tf.concat(cut, axis=0)

    def _mark_merged(self, value: Any) -> tf.Tensor:
        first = tf.identity(self.experimental_local_results(value)[0])  # type: ignore[attr-defined]
        first._tfaccel_merged = True
        return first

    def _spec(self, value: Any) -> Any:
        if value is None:
            return None
        first = self.experimental_local_results(value)[0]  # type: ignore[attr-defined]
        return tf.TensorSpec([None, *first.shape[1:]], first.dtype)

    def averaging(self, model: keras.Model) -> ModelAveraging:
        """What averages the replicas of `model` under `local_steps`."""
        found = vars(self).setdefault("_averagings", weakref.WeakKeyDictionary())
        if model not in found:
            found[model] = ModelAveraging(model, self, self.frequency.local_steps)
        averaging: ModelAveraging = found[model]
        return averaging

    def state_variables(self, model: keras.Model) -> list[tf.Variable]:
        """What a run of `model` keeps in variables of this strategy, in a fixed order."""
        found = list(getattr(self.gradient_compression, "variables", ()))
        if self.frequency.local_steps > 1:
            found.append(self.averaging(model).steps_alone)
        return found
