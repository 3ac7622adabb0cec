"""Layers in a `keras.RematScope` train to the numbers of plain ones, and keep less."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfaccel
from tests.distribute.watched import mirrored
from tfaccel.distribute import rematerialization
from tfaccel.errors import StrategyError

pytestmark = pytest.mark.child(devices=2)

ROWS = 12


class Block(keras.layers.Layer):
    """Draws, counts, adds a loss, and asks whether it trains and what is masked."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.norm = keras.layers.BatchNormalization(synchronized=True)
        self.attention = keras.layers.MultiHeadAttention(2, 4, dropout=0.2)
        self.wide = keras.layers.Dense(16, "gelu", activity_regularizer="l2")
        self.narrow, self.drop = keras.layers.Dense(8), keras.layers.Dropout(0.3)

    def call(self, x: Any, factor: Any = 1.0) -> Any:
        y = self.norm(x)
        x = x + factor * self.attention(y, y, use_causal_mask=True)
        return x + self.drop(self.narrow(self.wide(x)))

    def compute_mask(self, x: Any, mask: Any = None) -> Any:
        return mask


def language_model() -> keras.Model:
    tokens = keras.Input((6,), dtype="int32")
    x = keras.layers.Embedding(9, 8, mask_zero=True)(tokens)
    x = Block()(x, factor=0.5)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(tokens, keras.layers.Dense(3, dtype="float32")(x))


def trained(mode: str | None, strategy: Any = None, **compile_args: Any) -> list[Any]:
    """Losses and variables after two epochs."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 9, (ROWS, 6)), rng.integers(0, 3, ROWS)
    with strategy.scope() if strategy is not None else contextlib.nullcontext():
        with keras.RematScope(mode) if mode else contextlib.nullcontext():
            model = language_model()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.01), loss, **compile_args)
    losses = model.fit(x, y, batch_size=6, epochs=2, shuffle=False, verbose=0).history["loss"]
    return [np.array(losses), *(np.array(v) for v in model.variables)]


@pytest.mark.parametrize(
    ("replicas", "eager"),
    [
        (2, False),
        pytest.param(1, False, marks=pytest.mark.exhaustive),
        pytest.param(1, True, marks=pytest.mark.exhaustive),
    ],
)
def test_numbers_are_those_without(replicas: int, eager: bool) -> None:
    """Dropout's masks, seeds and moving statistics too."""
    rematerialization.install()
    strategy = mirrored() if replicas == 2 else None
    plain, again = (trained(mode, strategy, run_eagerly=eager) for mode in (None, "full"))
    for one, other in zip(plain, again, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-6)


def test_an_option_of_the_strategy_is_a_scope_of_keras() -> None:
    def modes(mode: str | None) -> list[Any]:
        strategy = tfaccel.strategy("one_device", device_type="cpu", rematerialization=mode)
        with strategy.scope():
            inside = keras.layers.Dense(1)
        return [getattr(each._remat_mode, "mode", None) for each in (inside, keras.layers.Dense(1))]

    assert modes("activations") == ["activations", None]
    assert modes("full") == ["full", None]
    assert modes(None) == [None, None]


def step_of(function: Callable[..., Any], *variables: Any) -> tuple[Any, list[Any]]:
    """The graph of a gradient through `keras.remat(function)`, and what it gives for ones."""
    rematerialization.install()

    @tf.function(autograph=False)
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(keras.remat(function)(x))
        return tape.gradient(y, [x, *variables])

    return step.get_concrete_function(tf.ones([4, 4])).graph, step(tf.ones([4, 4]))


def test_activations_are_computed_again() -> None:
    graph, _ = step_of(lambda x: tf.exp(tf.sin(x)))
    assert sum(op.type == "Sin" for op in graph.get_operations()) == 2


def test_keywords_nests_and_several_results() -> None:
    rematerialization.install()
    x, z = tf.Variable(tf.ones([3])), tf.Variable([1.0, 2.0, 3.0])

    def function(nest: dict[str, Any], *, scale: float, flags: Any) -> dict[str, Any]:
        chosen = tf.where(flags, nest["a"], nest["b"])
        return {"sum": scale * chosen**2, "count": tf.reduce_sum(tf.cast(flags, tf.int32))}

    @tf.function(autograph=False)
    def step() -> Any:
        with tf.GradientTape() as tape:
            given = {"a": tf.identity(x), "b": tf.identity(z)}
            found = keras.remat(function)(given, scale=2.0, flags=tf.constant([True, False, True]))
        return found["count"], tape.gradient(found["sum"], [x, z])

    count, (of_x, of_z) = step()
    assert int(count) == 2
    np.testing.assert_allclose(of_x, [4, 0, 4])
    np.testing.assert_allclose(of_z, [0, 8, 0])


def test_tensors_that_are_no_arguments_keep_their_gradient() -> None:
    rematerialization.install()
    x = tf.Variable([1.0, 2.0])

    @tf.function(autograph=False)
    def step() -> Any:
        with tf.GradientTape() as tape:
            outer = x**2
            y = keras.remat(lambda given: given * outer)(tf.ones([2]))
        return tape.gradient(y, x)

    np.testing.assert_allclose(step(), [2, 4])


def test_weights_that_a_call_changes_are_as_without() -> None:
    def weights(mode: str | None) -> list[Any]:
        keras.utils.set_random_seed(0)
        with keras.RematScope(mode) if mode else contextlib.nullcontext():
            layer = keras.layers.SpectralNormalization(keras.layers.Dense(3))
            model = keras.Sequential([keras.Input((4,)), layer])
        model.compile("sgd", "mse")
        model.fit(np.eye(4), np.ones((4, 3)), epochs=2, verbose=0)
        return [np.array(v) for v in model.weights]

    rematerialization.install()
    for one, other in zip(weights(None), weights("full"), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


class TwoHeads(keras.layers.Layer):
    """Uses one of its weights in a call."""

    def build(self, shape: Any) -> None:
        self.used = self.add_weight(shape=(shape[-1], 2), initializer="ones", name="used")
        self.unused = self.add_weight(shape=(shape[-1], 2), initializer="ones", name="unused")

    def call(self, x: Any) -> Any:
        return keras.ops.matmul(x, self.used)


@pytest.mark.parametrize("eager", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_a_weight_that_a_call_leaves_out_is_not_trained(eager: bool) -> None:
    """Nor does it decay, as it would with a gradient of zeros."""
    rematerialization.install()
    with keras.RematScope("full"):
        model = keras.Sequential([keras.Input((4,)), TwoHeads()])
    model.compile(keras.optimizers.AdamW(0.1, weight_decay=0.5), "mse", run_eagerly=eager)
    model.fit(np.eye(4), np.zeros((4, 2)), epochs=2, verbose=0)
    used, unused = (np.array(v) for v in model.trainable_variables)
    assert np.abs(used - 1).min() > 0.01
    np.testing.assert_array_equal(unused, np.ones((4, 2)))


def test_what_cannot_be_computed_again_is_refused() -> None:
    counted = tf.Variable(0.0)

    def counts(x: Any) -> Any:
        counted.assign_add(1.0)
        return x * counted

    for function in (counts, lambda x: x * tf.random.normal([4])):
        with pytest.raises(StrategyError, match="cannot be rematerialized"):
            step_of(function)
