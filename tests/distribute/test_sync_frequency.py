"""Communicating less often: accumulation with one all-reduce an update, and local steps."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfaccel
from tests.distribute.watched import data, linear
from tfaccel.distribute.mirrored import MirroredStrategy
from tfaccel.distribute.replica_options import ReplicaOptions
from tfaccel.distribute.sync_frequency import Frequency

ON_ONE = pytest.mark.child(devices=2, group="less often")
ON_TWO = pytest.mark.child(workers=2, group="less often")


@functools.cache
def accumulating() -> Any:
    options = ReplicaOptions(Frequency(gradient_accumulation="local"))
    return MirroredStrategy(["CPU:0", "CPU:1"], options=options)


@functools.cache
def alone(steps: int) -> Any:
    options = ReplicaOptions(Frequency(local_steps=steps))
    return MirroredStrategy(["CPU:0", "CPU:1"], options=options)


@functools.cache
def _workers() -> Any:
    options = {"devices": 1, "device_type": "cpu", "gradient_accumulation": "local"}
    return tfaccel.strategy("multi_worker_mirrored", **options)


def workers(**frequency: Any) -> Any:
    """The strategy over the workers; a second one would start TensorFlow's server again."""
    asked = Frequency(**frequency) if frequency else Frequency(gradient_accumulation="local")
    assert _workers().num_replicas_in_sync == 2
    _workers().frequency = asked
    return _workers()


def workers_alone() -> Any:
    return workers(local_steps=4)


def words(rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.integers(0, 20, (rows, 3)), rng.integers(0, 2, (rows, 1)).astype("float32")


def embedding(optimizer: Any) -> keras.Model:
    keras.utils.set_random_seed(5)
    model = keras.Sequential(
        [
            keras.Input((3,), dtype="int32"),
            keras.layers.Embedding(20, 4),
            keras.layers.Flatten(),
            keras.layers.Dense(1),
        ]
    )
    model.compile(optimizer(), "mse")
    return model


def dense(optimizer: Any) -> keras.Model:
    keras.utils.set_random_seed(5)
    return linear(optimizer)


def adam(**more: Any) -> Any:
    return lambda: keras.optimizers.Adam(0.05, gradient_accumulation_steps=4, **more)


def sgd(**more: Any) -> Any:
    return lambda: keras.optimizers.SGD(0.05, gradient_accumulation_steps=4, **more)


def scaled() -> Any:
    return keras.optimizers.LossScaleOptimizer(adam()(), initial_scale=8.0)


CASES = {
    "adam": (dense, adam(), data),
    "momentum": (dense, sgd(momentum=0.9), data),
    "clipped": (dense, sgd(global_clipnorm=0.2), data),
    "scaled": (dense, scaled, data),
    "embedding": (embedding, adam(), words),
}


def trained(scope: Any, case: str, **how: Any) -> keras.Model:
    build, optimizer, make = CASES[case]
    with scope():
        model = build(optimizer)
        model.run_eagerly = how.pop("run_eagerly", False)
    x, y = make(43)
    model.fit(x, y, batch_size=4, epochs=3, shuffle=False, verbose=0, **how)
    return model


def compare(strategy: Any, case: str, **how: Any) -> None:
    # 43 rows in batches of 4: the last batch has 3, and 33 steps leave one that is not applied.
    plain = trained(contextlib.nullcontext, case)
    ours = trained(strategy.scope, case, **how)
    for mine, expected in zip(ours.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-6)
    for mine, expected in zip(ours.optimizer.variables, plain.optimizer.variables, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-6, err_msg=mine.path)


@ON_ONE
@pytest.mark.parametrize(
    "case",
    # Adam has a momentum too, and is scaled here.
    [
        pytest.param(case, marks=pytest.mark.exhaustive) if case in ("adam", "momentum") else case
        for case in CASES
    ],
)
def test_accumulating_locally_gives_one_device_s_weights(case: str) -> None:
    compare(accumulating(), case)


@ON_ONE
def test_it_does_so_eagerly_too() -> None:
    compare(accumulating(), "adam", run_eagerly=True)


@ON_TWO
@pytest.mark.parametrize(
    "case",
    [
        case if case == "adam" else pytest.param(case, marks=pytest.mark.exhaustive)
        for case in CASES
    ],
)
def test_accumulating_locally_on_two_workers_gives_one_device_s_weights(case: str) -> None:
    compare(workers(), case)


def test_a_bound_clip_sees_the_accumulated_mean() -> None:
    # "clipped" above: were each batch's gradient clipped, one device's weights would be others.
    free, bound = (trained(contextlib.nullcontext, case) for case in ("momentum", "clipped"))
    assert not np.allclose(free.get_weights()[0], bound.get_weights()[0], rtol=1e-2)


def executed(strategy: Any, case: str, monkeypatch: Any) -> int:
    """How many all-reduces of gradients each replica executes in three epochs of eleven steps."""
    counted: list[int] = []
    plain = tf.distribute.ReplicaContext.all_reduce

    def noted(self: Any, op: Any, value: Any, options: Any = None) -> Any:
        def note() -> None:
            counted.append(1)

        sizes = [v.shape.num_elements() for v in tf.nest.flatten(value)]
        if sizes != [3, 1]:  # not the kernel and the bias
            return plain(self, op, value, options)
        with tf.control_dependencies([tf.py_function(note, [], [])]):
            value = tf.nest.map_structure(tf.identity, value)
        return plain(self, op, value, options)

    with monkeypatch.context() as patch:
        patch.setattr(tf.distribute.ReplicaContext, "all_reduce", noted)
        trained(strategy.scope, case)
    return len(counted) // strategy.num_replicas_in_sync


@ON_ONE
def test_gradients_are_reduced_once_for_each_update(monkeypatch: Any) -> None:
    assert executed(MirroredStrategy(["CPU:0", "CPU:1"]), "adam", monkeypatch) == 33
    # Steps 4, 8, ... 32 update, and an accumulator is brought together at the end of each epoch.
    assert executed(accumulating(), "adam", monkeypatch) == 8 + 3


# --- Local steps ------------------------------------------------------------------------------


def simulated(x: np.ndarray, y: np.ndarray, steps: int, epochs: int) -> list[np.ndarray]:
    """Local SGD with momentum on a linear model, as written down: two replicas, batches of 8."""
    weights = [np.array([1.0, 1, 1, 0]), np.array([1.0, 1, 1, 0])]
    momenta = [np.zeros(4), np.zeros(4)]
    taken = 0
    rows = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    for _ in range(epochs):
        for first in range(0, len(x), 8):
            batch = range(first, min(first + 8, len(x)))
            for replica, mine in enumerate(np.array_split(batch, 2)):
                error = rows[mine] @ weights[replica] - y[mine, 0]
                gradient = 2 * rows[mine].T @ error / len(mine)  # the mean over its own rows
                momenta[replica] = 0.9 * momenta[replica] - 0.1 * gradient
                weights[replica] = weights[replica] + momenta[replica]
            taken += 1
            if taken == steps or batch.stop == len(x):
                weights, momenta = [[sum(both) / 2] * 2 for both in (weights, momenta)]
                taken = 0
    return [weights[0][:3, None], weights[0][3:], momenta[0][:3, None], momenta[0][3:]]


def train_alone(strategy: Any, **how: Any) -> tuple[keras.Model, list[np.ndarray]]:
    """A model after three epochs of 6 full batches and one of 5 rows, and what it should hold."""
    with strategy.scope():
        model = linear(lambda: keras.optimizers.SGD(0.1, momentum=0.9))
        model.run_eagerly = how.pop("run_eagerly", False)
    x, y = data(53)
    model.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0, **how)
    return model, simulated(x, y, strategy.frequency.local_steps, epochs=3)


def assert_close(model: keras.Model, expected: list[np.ndarray]) -> None:
    iterations, _, *momenta = model.optimizer.variables
    assert int(iterations.numpy()) == 21
    for mine, simulation in zip([*model.weights, *momenta], expected, strict=True):
        np.testing.assert_allclose(mine, simulation, rtol=1e-5, atol=1e-6)


def parts(strategy: Any, variable: Any) -> list[bytes]:
    """The bits of a variable in each replica of this process."""
    return [v.numpy().tobytes() for v in strategy.experimental_local_results(variable.value)]


@ON_ONE
@pytest.mark.parametrize("run_eagerly", [False, True])
def test_local_steps_are_local_sgd(run_eagerly: bool) -> None:
    model, expected = train_alone(alone(4), run_eagerly=run_eagerly)
    assert_close(model, expected)
    for variable in [*model.variables, *model.optimizer.variables]:
        first, second = parts(alone(4), variable)
        assert first == second, variable.path


@ON_TWO
def test_local_steps_on_two_workers_are_local_sgd_and_end_alike() -> None:
    model, expected = train_alone(workers_alone())
    assert_close(model, expected)
    for variable in [*model.variables, *model.optimizer.variables]:
        mine = variable.numpy()
        (chief,) = workers_alone().broadcast([mine])
        assert chief.numpy().tobytes() == mine.tobytes(), variable.path


@ON_ONE
def test_one_local_step_is_what_every_strategy_does() -> None:
    usual = MirroredStrategy(["CPU:0", "CPU:1"])
    models = train_alone(alone(1))[0], train_alone(usual)[0]
    for one, other in zip(*(m.weights for m in models), strict=True):
        assert parts(alone(1), one) == parts(usual, other)


@ON_ONE
def test_replicas_diverge_and_are_equal_at_every_sync_point(tmp_path: Any) -> None:
    seen: dict[str, list[bool]] = {"batch": [], "validation": [], "epoch": []}

    def look(when: str) -> Any:
        def note(*_: Any, **__: Any) -> None:
            held = [*model.trainable_variables, *model.optimizer.variables]
            seen[when].append(all(len(set(parts(alone(4), v))) == 1 for v in held))

        return note

    saved = keras.callbacks.ModelCheckpoint(tmp_path / "{batch}.keras", save_freq=3)
    looks = keras.callbacks.LambdaCallback(
        on_train_batch_end=look("batch"), on_epoch_end=look("epoch")
    )
    looks.on_test_begin = look("validation")
    with alone(4).scope():
        model = linear(lambda: keras.optimizers.Adam(0.1))
    x, y = data(56)
    how = {"validation_data": (x, y), "steps_per_epoch": 6, "shuffle": False, "verbose": 0}
    model.fit(x, y, batch_size=8, callbacks=[looks], **how)
    assert seen == {"batch": [i == 3 for i in range(6)], "validation": [True], "epoch": [True]}

    seen["batch"].clear()
    model.fit(x, y, batch_size=8, callbacks=[saved, looks], **how)
    assert seen["batch"] == [False, False, True, False, False, True]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3.keras", "6.keras"]


def saved_amid(path: Any, scope: Any, optimizer: Any) -> list[np.ndarray]:
    """What a file holds that is saved after the third batch; nothing where none was written."""
    with scope():
        model = linear(optimizer)
    save = keras.callbacks.ModelCheckpoint(path, save_freq=3)
    model.fit(*data(24), batch_size=8, shuffle=False, verbose=0, callbacks=[save])
    if not path.exists():
        return []
    held = keras.models.load_model(path)
    return [v.numpy() for v in [*held.weights, *held.optimizer.variables]]


@ON_TWO
def test_a_save_amid_an_accumulation_holds_what_one_device_has_accumulated(tmp_path: Any) -> None:
    found = saved_amid(tmp_path / "workers.keras", workers().scope, sgd())
    assert bool(found) == (workers().placement.rank == 0)
    expected = saved_amid(tmp_path / "one.keras", contextlib.nullcontext, sgd())
    assert np.all(expected[-1] != 0)
    for one, other in zip(found, expected, strict=False):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@ON_TWO
def test_a_save_amid_local_steps_holds_the_average(tmp_path: Any) -> None:
    momentum = functools.partial(keras.optimizers.SGD, 0.1, momentum=0.9)
    found = saved_amid(tmp_path / "workers.keras", workers_alone().scope, momentum)
    assert bool(found) == (workers().placement.rank == 0)
    expected = simulated(*data(24), steps=4, epochs=1)
    for one, other in zip([*found[:2], *found[-2:]], expected, strict=False):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@ON_ONE
def test_an_overflow_affects_one_replica_only() -> None:
    with alone(4).scope():
        model = linear(
            lambda: keras.optimizers.LossScaleOptimizer(
                keras.optimizers.SGD(0.01), initial_scale=8.0
            )
        )
    x, y = data(32)
    x[0, 0] = np.inf  # the first step of the first replica
    model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    assert all(np.all(np.isfinite(w)) for w in model.get_weights())
    assert float(model.optimizer.dynamic_scale.numpy()) == (4.0 + 8.0) / 2
    for variable in [*model.trainable_variables, *model.optimizer.variables]:
        assert len(set(parts(alone(4), variable))) == 1, variable.path


def classifier() -> keras.Model:
    keras.utils.set_random_seed(2)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.003), loss)
    return model


@pytest.mark.exhaustive  # the weights are those of the formula, above
@pytest.mark.child(devices=2, group="digits", full=True)
def test_digits_are_learned_as_well_as_in_step() -> None:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    pixels = (pixels / 16).astype("float32")
    losses = []
    for scope in (contextlib.nullcontext, alone(4).scope):
        with scope():
            model = classifier()
        model.fit(pixels[:1500], labels[:1500], batch_size=64, epochs=8, verbose=0)
        losses.append(model.evaluate(pixels[1500:], labels[1500:], batch_size=99, verbose=0))
    together, apart = losses
    assert together < 0.5
    assert apart < together * 1.2
