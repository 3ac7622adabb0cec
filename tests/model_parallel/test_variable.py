"""A variable on the mesh looks like any other from the host."""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.fallbacks import Fallbacks
from tfaccel.distribute.model_parallel.host_copies import HostCopies
from tfaccel.errors import LayoutError, StrategyError

pytestmark = [pytest.mark.slow, pytest.mark.child(devices=4, group="variable")]


@functools.cache
def strategy(layouts: str = "auto") -> Any:
    import tfaccel

    return tfaccel.strategy(
        "model_parallel", mesh="batch=2,model=2", layouts=layouts, device_type="cpu"
    )


def dense(units: int = 8, layouts: str = "auto") -> Any:
    with strategy(layouts).scope():
        layer = keras.layers.Dense(units)
        layer.build((None, 6))
    return layer


def shards(variable: Any) -> dict[tuple[int, ...], np.ndarray]:
    return {tuple(s.indices(n)[0] for s, n in zip(cut, variable.shape, strict=True)): p.numpy()
            for cut, p in variable.value.shards()}  # fmt: skip


def test_every_device_holds_its_slice_alone() -> None:
    kernel = dense().kernel
    whole = kernel.numpy()
    found = shards(kernel)
    assert sorted(found) == [(0, 0), (0, 4)]
    np.testing.assert_array_equal(found[0, 4], whole[:, 4:])


def test_reads_and_takes_whole_arrays() -> None:
    for layouts in ("auto", "fully_sharded"):
        kernel = dense(layouts=layouts).kernel
        value = np.arange(48, dtype="float32").reshape(6, 8)
        kernel.assign(value)
        np.testing.assert_array_equal(kernel.numpy(), value)
        kernel.assign_add(np.ones((6, 8)))
        kernel.assign_sub(tf.ones((6, 8)) * 2)
        np.testing.assert_array_equal(np.array(kernel), value - 1)
        np.testing.assert_array_equal(keras.ops.take(kernel, [3, 1], axis=0), (value - 1)[[3, 1]])
        np.testing.assert_allclose(keras.ops.matmul(np.ones((1, 6), "float32"), kernel),
                                   (value - 1).sum(0, keepdims=True))  # fmt: skip
        np.testing.assert_array_equal(kernel[2:4], (value - 1)[2:4])


def test_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        dense().kernel.assign(np.zeros((8, 6)))


def test_models_run_on_host_arrays_outside_a_step() -> None:
    layer = dense()
    # Integers, whose sums are exact in every order.
    kernel, bias = np.arange(48.0).reshape(6, 8), np.arange(8.0)
    layer.set_weights([kernel, bias])
    x = np.arange(18.0).reshape(3, 6)
    np.testing.assert_array_equal(layer(x), x @ kernel + bias)


def test_metrics_can_be_read_and_reset() -> None:
    with strategy().scope():
        mean = keras.metrics.Mean()
    mean.update_state([1.0, 3.0])
    assert float(mean.result()) == 2.0
    mean.reset_state()
    assert float(mean.result()) == 0.0


def test_clone_and_weights() -> None:
    with strategy().scope():
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8), keras.layers.Dense(2)])
        again = keras.models.clone_model(model)
    again.set_weights(model.get_weights())
    x = np.ones((2, 6), "float32")
    np.testing.assert_array_equal(model(x), again(x))


def test_a_loop_of_ones_own() -> None:
    """Batches are taken outside, and passed to a tf.function that runs the step."""
    ours = strategy()
    x, y = np.ones((8, 6), "float32"), np.arange(8, dtype="float32")[:, None]
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    with ours.scope():
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
        optimizer = keras.optimizers.SGD(0.01)
        optimizer.build(model.trainable_variables)
    plain = keras.models.clone_model(model)
    plain.set_weights(model.get_weights())
    plain.compile(keras.optimizers.SGD(0.01), "mse")
    plain.fit(x, y, batch_size=4, shuffle=False, verbose=0)

    def step(batch: Any) -> Any:
        inputs, wanted = batch
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(inputs) - wanted))
        of = model.trainable_variables
        optimizer.apply(tape.gradient(loss, of), of)
        return loss

    @tf.function
    def run(batch: Any) -> Any:
        return ours.run(step, args=(batch,))

    for batch in ours.experimental_distribute_dataset(data):
        run(batch)
    for a, b in zip(plain.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)


def test_a_rule_that_matches_nothing_stops_the_first_step() -> None:
    import tfaccel

    ours = tfaccel.strategy(
        "model_parallel",
        mesh="batch=2,model=2",
        layouts={".*/kernel": (None, "model"), "nowhere": ("model",)},
        device_type="cpu",
    )
    with ours.scope():
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8)])
        model.compile("sgd", "mse")
    x, y = np.ones((4, 6)), np.ones((4, 8))
    for step in (
        lambda: model.predict(x, verbose=0),
        lambda: model.evaluate(x, y, verbose=0),
        lambda: model.train_on_batch(x, y),
        lambda: model.fit(x, y, verbose=0),
    ):
        with pytest.raises(LayoutError, match=r"rule 'nowhere' \(mesh .*\) matches no variable"):
            step()


def test_a_mesh_that_does_not_fit_gets_one_line() -> None:
    import tfaccel

    with pytest.raises(LayoutError, match=r"mesh batch=3,model=2 has 6 devices and there are 4 "):
        tfaccel.strategy("model_parallel", mesh="batch=3,model=2", devices=4, device_type="cpu")
    with pytest.raises(StrategyError, match="needs a mesh; pass one, such as mesh='batch=1"):
        tfaccel.strategy("model_parallel", devices=4, device_type="cpu")
    with pytest.raises(StrategyError, match="'batch=2' was requested with strategy 'mirrored'"):
        tfaccel.strategy("mirrored", devices=4, device_type="cpu", mesh="batch=2")


def test_autograph_leaves_its_methods_as_they_are() -> None:
    variable = dense().bias.value

    def counts(x: tf.Tensor) -> tf.Tensor:
        variable.assign_add(x)
        variable.assign_sub(2 * x)
        return variable.value() + variable.read_value() + tf.gather(variable, [0])

    with Fallbacks() as fallbacks, HostCopies().used():
        found = tf.function(counts)(tf.ones([8]))
        variable.assign(variable.value() - 1)
    assert not fallbacks.said
    np.testing.assert_array_equal(found, np.full(8, -3.0))
    np.testing.assert_array_equal(variable.numpy(), np.full(8, -2.0))
