from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.distribute.watched import data, mirrored
from tfaccel.distribute.non_trainable import replica_seeds, statistics

pytestmark = pytest.mark.child(devices=3)


def normalized() -> keras.Model:
    keras.utils.set_random_seed(4)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4, name="first"),
            keras.layers.BatchNormalization(name="frozen"),
            keras.layers.Dropout(0.3, seed=1),
            keras.layers.BatchNormalization(name="live"),
            keras.layers.Dense(1),
        ]
    )
    model.get_layer("frozen").moving_mean.assign([0.1, 0.2, 0.3, 0.7])
    return model


def locals_of(variable: Any) -> list[np.ndarray]:
    return [v.numpy() for v in mirrored().experimental_local_results(variable.value)]


def test_statistics_are_what_changes_without_a_gradient() -> None:
    with mirrored().scope():
        model = normalized()
    names = ["moving_mean", "moving_variance"] * 2
    assert [v.name.split("/")[-1] for v in statistics(model)] == [
        v.value.name.split("/")[-1]
        for v in model.non_trainable_variables
        if v.path.split("/")[-1] in names
    ]
    assert len(statistics(model)) == 4


def test_a_kernel_that_was_frozen_later_is_no_statistic() -> None:
    with mirrored().scope():
        model = normalized()
    before = [id(v) for v in statistics(model)]
    model.get_layer("first").trainable = False
    model.get_layer("frozen").trainable = False
    assert len(model.non_trainable_weights) > len(normalized().non_trainable_weights)
    assert sorted(id(v) for v in statistics(model)) == sorted(before)


def test_frozen_statistics_are_bit_identical_and_live_ones_equal_on_all_replicas() -> None:
    with mirrored().scope():
        model = normalized()
        model.get_layer("frozen").trainable = False
        model.compile(keras.optimizers.SGD(0.05), "mse")
    frozen = model.get_layer("frozen")
    before = [v.numpy().tobytes() for v in frozen.variables]
    live = model.get_layer("live").moving_mean.numpy()
    model.fit(*data(33), batch_size=7, epochs=4, verbose=0)
    assert int(model.optimizer.iterations.numpy()) == 20
    for variable, bits in zip(frozen.variables, before, strict=True):
        assert [part.tobytes() for part in locals_of(variable)] == [bits] * 3, variable.path
    assert not np.array_equal(live, model.get_layer("live").moving_mean.numpy())
    for variable in model.variables:
        first, *rest = locals_of(variable)
        assert all(part.tobytes() == first.tobytes() for part in rest), variable.path


def test_a_moving_mean_moves_by_the_mean_of_all_rows() -> None:
    with mirrored().scope():
        layer = keras.layers.BatchNormalization(momentum=0.9)
        model = keras.Sequential([keras.Input((3,)), layer, keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.05), "mse")
    x, y = data(7)
    model.fit(x, y, batch_size=7, verbose=0)  # parts of three rows and of two
    np.testing.assert_allclose(layer.moving_mean.numpy(), 0.1 * x.mean(axis=0), rtol=1e-5)


def test_own_randomness_differs_by_replica_and_restores_the_state() -> None:
    with mirrored().scope():
        generator = keras.random.SeedGenerator(5)
        layer = keras.layers.Dropout(0.5, seed=6)
    seeds = mirrored().extended.seeds()[-2:]
    assert {id(seed) for seed in seeds} == {
        id(generator.state.value),
        id(layer.seed_generator.state.value),
    }

    def inside() -> Any:
        with replica_seeds(seeds):
            return tf.identity(seeds[0]), layer(tf.ones((64,)), training=True)

    before = locals_of(generator.state)
    run = tf.function(lambda: mirrored().run(inside))
    state, first = map(mirrored().experimental_local_results, run())
    assert len({tuple(s.numpy().tolist()) for s in state}) == 3
    assert len({m.numpy().tobytes() for m in first}) == 3
    assert state[0].numpy().tolist() == before[0].tolist()  # replica 0 has one device's numbers
    for part, old in zip(locals_of(generator.state), before, strict=True):
        assert part.tolist() == old.tolist()  # not drawn from: as it was
    used = locals_of(layer.seed_generator.state)
    assert all(part.tolist() == used[0].tolist() for part in used)
    assert used[0].tolist() != [0, 6]  # drawn from once: has moved, alike on all


def test_own_randomness_restores_the_state_after_an_error() -> None:
    with mirrored().scope():
        generator = keras.random.SeedGenerator(5)
    before = locals_of(generator.state)

    def inside() -> None:
        with replica_seeds([generator.state.value]):
            raise KeyError

    with pytest.raises(KeyError):
        mirrored().run(inside)
    for part, old in zip(locals_of(generator.state), before, strict=True):
        assert part.tolist() == old.tolist()


def test_seeds_that_are_gone_are_forgotten() -> None:
    import gc

    gc.collect()
    before = len(mirrored().extended.seeds())
    with mirrored().scope():
        generator = keras.random.SeedGenerator(5)
    assert len(mirrored().extended.seeds()) == before + 1
    del generator
    gc.collect()
    assert len(mirrored().extended.seeds()) == before


def test_the_first_step_of_a_custom_loop_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """AutoGraph converts what a `tf.function` calls, and warns of each function that it cannot."""
    with mirrored().scope():
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])

    @tf.function
    def steps(x: Any) -> Any:
        return mirrored().run(lambda rows: model(rows), args=(x,))

    with caplog.at_level("WARNING"):
        steps(tf.constant(data(7)[0]))
    assert [each for each in caplog.messages if "AutoGraph" in each] == []
