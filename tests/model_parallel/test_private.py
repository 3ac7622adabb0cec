"""Watches the private names that a mesh needs: says which one moved."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import func_graph

from tfaccel.distribute import _private


class Watching(keras.layers.Layer):
    """Makes a variable inside a layer, and looks around while it does."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.inner = keras.layers.Dense(2, kernel_initializer=self.look)
        self.seen: dict[str, Any] = {}

    def look(self, shape: Any, dtype: Any = None) -> Any:
        self.seen["path"] = _private.variable_path("kernel")
        self.seen["layers"] = [layer.name for layer in _private.layers_being_built()]
        return tf.zeros(shape, dtype)

    def build(self, shape: Any) -> None:
        self.inner.build(shape)


def test_paths_and_layers_of_a_variable_being_made() -> None:
    layer = Watching(name="outer")
    layer.build((None, 3))
    assert layer.seen["path"] == layer.inner.kernel.path
    assert list(layer.seen["layers"]) == ["outer", layer.inner.name]


def test_the_model_that_is_compiled_can_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    variable = keras.Variable._initialize

    def initialize(self: Any, value: Any) -> None:
        seen.append(_private.compiling_model())
        variable(self, value)

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    monkeypatch.setattr(keras.Variable, "_initialize", initialize)
    keras.metrics.Mean()
    assert set(seen) == {None}, "a metric of a script's own is not inside compile"
    seen.clear()
    model.compile("sgd", "mse")
    assert model in seen


@pytest.mark.parametrize("name", ["capture", "_create_op_internal"])
def test_graphs_have_the_hooks_that_capturing_overrides(name: str) -> None:
    assert callable(getattr(func_graph.FuncGraph, name, None))


def test_eager_operations_read_the_handle_at_its_private_name() -> None:
    class Halves(_private.ReadByValue, type(tf.Variable(0.0))):  # type: ignore[misc]
        def hidden(self) -> bool:
            return tf.executing_eagerly()

        def value(self) -> tf.Tensor:
            return tf.constant(0.5)

    assert float(tf.add(Halves(3.0), 1.0)) == 1.5


def test_the_replacement_of_division_can_be_set() -> None:
    asked = []

    def divide(as_keras: Any, x1: Any, x2: Any) -> Any:
        asked.append((x1, x2))
        return as_keras(x1, x2)

    with _private.division_replaced(divide):
        assert float(keras.ops.divide(6.0, 3.0)) == 2.0
    assert asked == [(6.0, 3.0)]
    keras.ops.divide(6.0, 3.0)
    assert len(asked) == 1


def test_a_functional_model_is_run_from_the_middle() -> None:
    inputs = keras.Input((3,))
    half = keras.layers.Dense(2)(inputs)
    model = keras.Model(inputs, keras.layers.Dropout(0.5)(half))
    assert _private.functional_of(model) is model
    assert _private.functional_of(keras.Sequential([inputs, *model.layers[1:]])) is not None
    assert _private.functional_of(Subclassed()) is None

    function = keras.Function([half], model.output)
    x = tf.ones((4, 2))
    assert np.all(_private.run_function(function, [x], training=False) == 1.0)
    assert np.any(_private.run_function(function, [x], training=True) == 0.0)


class Subclassed(keras.Model):
    """Has a call of its own."""

    def call(self, inputs: Any) -> Any:
        return inputs


def test_what_an_operation_depends_on() -> None:
    pure = ("ArgMin", "Slice", "Unique", "StatelessRandomGammaV3", "AsString")
    not_pure = ("RandomUniform", "TensorListStack", "ReadVariableOp", "StatelessWhile", "NoSuchOp")
    assert all(map(_private.is_pure, pure))
    assert not any(map(_private.is_pure, not_pure))
