"""What a model does differently on a mesh, transparently to its user."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import keras
import tensorflow as tf

from tfaccel.distribute import build
from tfaccel.distribute._private import PerReplicaBatch, layers_of
from tfaccel.distribute.custom_loops import Parts
from tfaccel.distribute.files import model_files
from tfaccel.distribute.mixins import mix_in
from tfaccel.distribute.model_parallel import (
    generate,
    host_copies,
    host_fallback,
    phase,
    preprocessing,
)
from tfaccel.distribute.model_parallel.feature_replication import replicated_features
from tfaccel.distribute.model_parallel.metrics import read_on_host
from tfaccel.distribute.model_parallel.recurrent import unrolled
from tfaccel.distribute.model_parallel.unsupported import check, remember, with_explained_errors
from tfaccel.distribute.replacements import replaced


class MeshModel:
    """Mixin for a model whose variables lie on a mesh."""

    _tfaccel_strategy: Any
    train_function: Any
    test_function: Any
    predict_function: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As Keras's; on the host, on copies of the variables where a layer creates a function.

        Keras compiles a grouped convolution, and its function would read both host tensors and the
        mesh.
        """
        on_host = phase.current() == phase.HOST and tf.executing_eagerly()
        if not on_host or not any(getattr(each, "groups", 1) != 1 for each in layers_of(self)):
            return preprocessing.call_model(super().__call__, self, *args, **kwargs)  # type: ignore[misc]
        with host_copies.HostCopies().used():
            return super().__call__(*args, **kwargs)  # type: ignore[misc]

    def make_train_function(self, force: bool = False) -> None:
        """As Keras's; its function takes host batches too (`train_on_batch`)."""
        super().make_train_function(force)  # type: ignore[misc]
        self.train_function = _takes_host_batches(self, "train", super())

    def make_test_function(self, force: bool = False) -> None:
        """As Keras's; its function takes host batches too (`test_on_batch`)."""
        super().make_test_function(force)  # type: ignore[misc]
        self.test_function = _takes_host_batches(self, "test", super())

    def make_predict_function(self, force: bool = False) -> None:
        """As Keras's; its function takes host batches too (`predict_on_batch`)."""
        super().make_predict_function(force)  # type: ignore[misc]
        self.predict_function = _takes_host_batches(self, "predict", super())

    def get_metrics_result(self) -> Any:
        """As Keras's, reading the variables of metrics on the host after the steps."""
        self._tfaccel_strategy.deferred_errors.check()
        with read_on_host(self.metrics):  # type: ignore[attr-defined]
            return super().get_metrics_result()  # type: ignore[misc]

    def train_step(self, data: Any) -> Any:
        """The model's own, with recurrent layers unrolled and features whole where they must be."""
        with _on_mesh(self, "train"):
            return super().train_step(data)  # type: ignore[misc]

    def test_step(self, data: Any) -> Any:
        """The model's own, with recurrent layers unrolled and features whole where they must be."""
        with _on_mesh(self, "test"):
            return super().test_step(data)  # type: ignore[misc]

    def predict_step(self, data: Any) -> Any:
        """The model's own, with recurrent layers unrolled and features whole where they must be."""
        with _on_mesh(self, "predict"):
            return super().predict_step(data)  # type: ignore[misc]


@contextmanager
def _on_mesh(model: Any, kind: str) -> Iterator[None]:
    strategy = model._tfaccel_strategy
    if host_copies.in_use() or build.is_tracing() or model._tfaccel_host_fallback.applies_to(kind):
        yield
        strategy.planner.check_all_used()
        return
    mesh, planner = strategy.mesh, strategy.planner
    check(model, kind == "train", mesh.device_type())
    with unrolled(model), replicated_features(model, mesh, planner.mesh.model_axis):
        yield
    planner.check_all_used()  # after a step that makes variables
    remember(model, tf.compat.v1.get_default_graph())


@contextmanager
def in_custom_loop(parts: Parts, strategy: Any) -> Iterator[None]:
    """While a custom step is traced or run, prepares its layers as in a model's steps.

    Args:
        parts: what the step uses.
        strategy: of a mesh.
    """
    mesh, planner = strategy.mesh, strategy.planner
    losses = parts.losses
    with ExitStack() as stack:
        for layer in parts.layers:
            check(layer, False, mesh.device_type())
            stack.enter_context(unrolled(layer))
            stack.enter_context(replicated_features(layer, mesh, planner.mesh.model_axis, losses))
            losses = ()
        yield
    planner.check_all_used()
    graph = tf.compat.v1.get_default_graph()
    for layer in parts.layers:
        remember(layer, graph)


def place_model(model: keras.Model, strategy: Any) -> None:
    """Makes `model` run on the mesh of `strategy`."""
    mix_in(model, MeshModel)
    strategy.planner.end_model()  # its layers are made, or its first step makes them
    generate.enable_generate(model)
    object.__setattr__(model, "_tfaccel_strategy", strategy)
    if strategy.cluster is not None:
        model_files.write_by_policy(model, strategy)
    if not hasattr(model, "_tfaccel_host_fallback"):
        object.__setattr__(
            model, "_tfaccel_host_fallback", host_fallback.HostFallback(model, strategy)
        )


def _takes_host_batches(model: Any, kind: str, plain: Any) -> Callable[[Any], Any]:
    """Keras's step function, extended to take host batches too.

    Args:
        model: whose step it is.
        kind: ``"train"``, ``"test"`` or ``"predict"``.
        plain: has Keras's own methods that create such functions.
    """
    name = f"{kind}_function"
    function = getattr(model, name)
    if hasattr(function, "_tfaccel_takes_host_batches"):
        return function  # type: ignore[no-any-return]
    strategy = model._tfaccel_strategy

    def made() -> Any:
        """A new copy of Keras's function, to be retraced."""
        with replaced(model, name, None):
            getattr(plain, f"make_{name}")(force=True)
            return getattr(model, name)

    first: list[Any] = [function]

    def divided() -> Any:
        explained = with_explained_errors(first.pop() if first else made(), model)
        return lambda batches: explained([strategy.on_mesh(batch) for batch in batches])

    def placed(batch: Any) -> Any:
        if isinstance(batch, PerReplicaBatch):  # of a dataset, and on the mesh already
            return batch
        if (part := preprocessing.host_part(model)) is not None:
            batch = part.on_host(batch)
        if (reason := preprocessing.stays_on_host(batch)) is not None:
            model._tfaccel_host_fallback.enable(kind, reason)
        return batch

    step = host_fallback.with_host_fallback(divided, made, model._tfaccel_host_fallback, kind)

    def checked(batch: Any) -> None:
        if not model._tfaccel_host_fallback.applies_to(kind):
            if kind == "predict" and not isinstance(batch, PerReplicaBatch):
                build.for_method(model, "predict_on_batch", build.specs(batch), strategy)
            strategy.checks.check_first_step(model, kind, step, batch)

    @functools.wraps(function)
    def takes(batches: Any) -> Any:
        if isinstance(batches, list):  # of predict, whose results are read
            mesh_batches = [placed(batch) for batch in batches]
            checked(mesh_batches[0])
            return step(mesh_batches)
        result = None
        for _, batch in zip(range(model.steps_per_execution), iter(batches), strict=False):
            mesh_batches = [placed(batch)]
            checked(mesh_batches[0])
            result = step(mesh_batches)
        return strategy.deferred_errors.follow(result)

    takes._tfaccel_takes_host_batches = True  # type: ignore[attr-defined]
    return takes
