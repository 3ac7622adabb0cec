"""The methods that Keras calls on any strategy, and in which order: with replicas and on a mesh.

`KerasStrategy` goes before a `tf.distribute.Strategy`. The two kinds of strategies differ in its
methods that begin with an underscore.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfaccel.distribute import (
    _private,
    build,
    default_strategy,
    late_variables,
    rematerialization,
    scope,
)
from tfaccel.distribute.files import file_callbacks
from tfaccel.distribute.gradients import install
from tfaccel.distribute.steps_per_execution import StepsPerExecution


class KerasStrategy:
    """Mixin for a `tf.distribute.Strategy`.

    Attributes:
        used: whether anything has run under this strategy.
        steps_per_execution: chooses how many steps run per call; None for the number of the model.
    """

    used = False
    steps_per_execution: StepsPerExecution | None = None

    def scope(self) -> Any:
        """As TensorFlow's; a model that Keras is about to build in it is prepared first."""
        default_strategy.delegate_default_strategy()
        late_variables.make_in_scope_of_model()
        install()
        rematerialization.install()
        if (model := _private.building_model()) is not None:
            self._adopt(model)
            build.build_from_steps(model, self)
        return super().scope()  # type: ignore[misc]

    def experimental_distribute_dataset(self, dataset: Any, options: Any = None) -> Any:
        """Distributes a dataset; one that `Model.fit` requests, in tfaccel's way.

        Args:
            dataset: a `tf.data.Dataset` of global batches, the same on every worker.
            options: a `tf.distribute.InputOptions`.

        Raises:
            InputError: when its batches cannot be distributed.
            ScopeError: when a part of the model was created under another strategy.
        """
        caller = _private.calling_model()
        if caller is None:
            return self._distribute_for_loop(dataset, options)
        self.used = True
        self._adopt(caller.model)
        build.for_caller(caller, dataset.element_spec, self)
        self._check_data(caller.model, dataset)
        if caller.method == "fit" and not caller.validates:
            file_callbacks.warn_of_backups(caller.callbacks)
        self._prepare_callbacks(caller.callbacks)
        return self._batches(caller, self._read_ahead_of(caller, dataset))

    def _read_ahead_of(self, caller: _private.Caller, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """`dataset`, of which no more batches are read ahead than `caller` takes.

        A shuffled dataset that repeats draws its next order as soon as a pass ends. Whether a later
        `fit` on it had that order would depend on how far each worker has read.
        """
        endless = caller.threads is None and dataset.cardinality() == tf.data.INFINITE_CARDINALITY
        if caller.total is None or not endless or self.steps_per_execution is not None:
            return dataset
        return dataset.take(caller.total)

    def _adopt(self, model: keras.Model) -> None:
        """Adopts everything that the steps of `model` use into this strategy."""
        scope.check(model, self)

    def _check_data(self, model: keras.Model, dataset: tf.data.Dataset) -> None:
        """Raises if `model` cannot take the batches of `dataset`."""

    def _prepare_callbacks(self, callbacks: Any) -> None:
        """Called with the callbacks of a `fit` before any of them runs."""

    def _batches(self, caller: _private.Caller, dataset: tf.data.Dataset) -> Any:
        """The iterable for Keras: the batches of `dataset`, placed where the steps need them."""
        raise NotImplementedError

    def _distribute_for_loop(self, dataset: tf.data.Dataset, options: Any) -> Any:
        """Distributes a dataset for a script's own loop, as TensorFlow's strategy does."""
        return super().experimental_distribute_dataset(dataset, options)  # type: ignore[misc]
