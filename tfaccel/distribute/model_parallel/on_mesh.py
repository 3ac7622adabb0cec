"""What a model does differently on a mesh: nothing that its user would see."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from tfaccel.distribute._private import layers_of
from tfaccel.distribute.adapt import adapt
from tfaccel.distribute.feed import BatchIterator
from tfaccel.distribute.model_parallel import generate, preprocessing, saving, stage
from tfaccel.distribute.model_parallel.copies import Copies, mesh_variables
from tfaccel.distribute.model_parallel.metrics import read_on_host
from tfaccel.distribute.model_parallel.recurrent import unrolled
from tfaccel.distribute.model_parallel.refusals import check, explains, remember
from tfaccel.distribute.model_parallel.whole import whole_features


class OnMesh:
    """Mixin for a model whose variables lie on a mesh."""

    _tfaccel_strategy: Any
    train_function: Any
    test_function: Any
    predict_function: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As Keras's; on the host, by copies of the variables where a layer makes a function.

        Keras compiles a grouped convolution, and its function would read both host tensors and the
        mesh.
        """
        on_host = stage.current() == stage.HOST and tf.executing_eagerly()
        if not on_host or not any(getattr(each, "groups", 1) != 1 for each in layers_of(self)):
            return preprocessing.called(super().__call__, self, *args, **kwargs)  # type: ignore[misc]
        with Copies(lambda: mesh_variables(self.variables)).used():  # type: ignore[attr-defined]
            return super().__call__(*args, **kwargs)  # type: ignore[misc]

    def make_train_function(self, force: bool = False) -> None:
        """As Keras's; its function takes host batches too (`train_on_batch`)."""
        super().make_train_function(force)  # type: ignore[misc]
        self.train_function = _takes_host_batches(self.train_function, self, trains=True)

    def make_test_function(self, force: bool = False) -> None:
        """As Keras's; its function takes host batches too (`test_on_batch`)."""
        super().make_test_function(force)  # type: ignore[misc]
        self.test_function = _takes_host_batches(self.test_function, self)

    def make_predict_function(self, force: bool = False) -> None:
        """As Keras's; its function takes host batches too (`predict_on_batch`)."""
        super().make_predict_function(force)  # type: ignore[misc]
        self.predict_function = _takes_host_batches(self.predict_function, self)

    def get_metrics_result(self) -> Any:
        """As Keras's, with the variables of metrics read on the host, when the steps are done."""
        self._tfaccel_strategy.outcome.check()
        with read_on_host(self.metrics):  # type: ignore[attr-defined]
            return super().get_metrics_result()  # type: ignore[misc]

    def save(self, filepath: Any, overwrite: bool = True, **kwargs: Any) -> None:
        """As Keras's; of several processes, which all call, the chief writes."""
        self._write(super().save, filepath, overwrite, kwargs)  # type: ignore[misc]

    def save_weights(self, filepath: Any, overwrite: bool = True, **kwargs: Any) -> None:
        """As Keras's; of several processes, which all call, the chief writes."""
        self._write(super().save_weights, filepath, overwrite, kwargs)  # type: ignore[misc]

    def export(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """As Keras's; of several processes, which all call, the chief writes.

        Without one order in which all gather the variables, the processes of a trained model waited
        for each other for ever.
        """
        strategy, export = self._tfaccel_strategy, super().export  # type: ignore[misc]
        if strategy.cluster is None:
            export(filepath, *args, **kwargs)
            return
        saving.write_once(
            self,
            strategy,
            os.fspath(filepath),
            lambda own: export(own, *args, **kwargs),
            atomic=False,  # a folder
        )

    def _write(self, write: Any, filepath: Any, overwrite: bool, kwargs: dict[str, Any]) -> None:
        strategy = self._tfaccel_strategy
        if strategy.cluster is None:
            write(filepath, overwrite=overwrite, **kwargs)
            return
        path = os.fspath(filepath)
        if os.path.exists(path) and not overwrite:
            raise FileExistsError(
                f"tfaccel: {path} is there already and overwrite=False; expected a new path."
            )
        saving.write_once(
            self,
            strategy,
            path,
            lambda own: write(own, overwrite=True, **kwargs),
            atomic=not kwargs,  # several files, or a folder
        )

    def train_step(self, data: Any) -> Any:
        """The model's own, with recurrent layers unrolled and features whole where they must be."""
        if stage.current() == stage.COPY:  # as one device takes it
            return super().train_step(data)  # type: ignore[misc]
        with unrolled(self), _whole(self, training=True):
            return super().train_step(data)  # type: ignore[misc]

    def test_step(self, data: Any) -> Any:
        """The model's own, with recurrent layers unrolled and features whole where they must be."""
        with unrolled(self), _whole(self):
            return super().test_step(data)  # type: ignore[misc]

    def predict_step(self, data: Any) -> Any:
        """The model's own, with recurrent layers unrolled and features whole where they must be."""
        with unrolled(self), _whole(self):
            return super().predict_step(data)  # type: ignore[misc]


@contextmanager
def _whole(model: Any, training: bool = False) -> Iterator[None]:
    mesh, planner = model._tfaccel_strategy.mesh, model._tfaccel_strategy.planner
    check(model, training, mesh.device_type())
    with whole_features(model, mesh, planner.mesh.model_axis):
        yield
    planner.check_all_used()  # after a step that makes variables
    remember(model, tf.compat.v1.get_default_graph())


def put(model: keras.Model, strategy: Any) -> None:
    """Makes `model` one that runs on the mesh of `strategy`."""
    adapt(model, OnMesh)
    generate.put(model)
    object.__setattr__(model, "_tfaccel_strategy", strategy)


def _takes_host_batches(
    function: Callable[[Any], Any], model: Any, trains: bool = False
) -> Callable[[Any], Any]:
    if hasattr(function, "_tfaccel_takes_host_batches"):
        return function
    strategy, function = model._tfaccel_strategy, explains(function, model)

    def on_mesh(batch: Any) -> Any:
        part = preprocessing.of(model)
        return strategy.on_mesh(batch if part is None else part.on_host(batch))

    @functools.wraps(function)
    def placed(batches: Any) -> Any:
        if isinstance(batches, list):  # of predict, whose results are read
            return function([on_mesh(batch) for batch in batches])
        if not isinstance(batches, BatchIterator):
            batches = map(on_mesh, batches)
        if trains:
            batches = strategy.checks.before(model, function, batches)
        return strategy.outcome.follow(function(batches))

    placed._tfaccel_takes_host_batches = True  # type: ignore[attr-defined]
    return placed
