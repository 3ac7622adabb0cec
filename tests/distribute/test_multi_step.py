"""Several steps in one call: the numbers of one step at a time, on replicas that can run here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfaccel.distribute.batch_sharding import Placement
from tfaccel.distribute.batches import Batches
from tfaccel.distribute.mirrored import MirroredStrategy
from tfaccel.distribute.multi_step import MultiStepBatches
from tfaccel.distribute.replica_options import ReplicaOptions
from tfaccel.distribute.steps_per_execution import StepsPerExecution, choose

pytestmark = pytest.mark.child(group="in one call")

ROWS = 38  # five batches, the last of which has fewer rows
RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, 4)).astype("float32")
Y = RNG.integers(0, 3, ROWS)
WEIGHT = RNG.uniform(0.5, 2, ROWS).astype("float32")


def model() -> keras.Model:
    keras.utils.set_random_seed(3)
    made = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
    loss = "sparse_categorical_crossentropy"
    made.compile(keras.optimizers.Adam(0.1), loss, metrics=["accuracy"])
    return made


def strategy() -> MirroredStrategy:
    """One replica: those of a TPU are one program, and this is what can run it here."""
    made = MirroredStrategy(["CPU:0"], options=ReplicaOptions(partial_batch="pad"))
    made.steps_per_execution = StepsPerExecution()
    return made


def batches() -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(ROWS, seed=1).batch(8)


def generated() -> Iterator[Any]:
    for start in range(0, ROWS, 8):
        yield X[start : start + 8], Y[start : start + 8]


def unweighted() -> Iterator[Any]:
    for x, y in generated():
        yield x, y, None


def endless() -> Iterator[Any]:
    while True:
        yield from generated()


FITS: dict[str, Any] = {
    "arrays": lambda m: m.fit(X, Y, batch_size=8, epochs=3, verbose=0),
    "weights": lambda m: m.fit(X, Y, batch_size=8, sample_weight=WEIGHT, epochs=2, verbose=0),
    "no weights": lambda m: m.fit(
        batches().map(lambda x, y: (x, y, None)), validation_data=unweighted(), epochs=2, verbose=0
    ),
    "dataset": lambda m: m.fit(batches(), epochs=3, verbose=0),
    "part of an epoch": lambda m: m.fit(batches().repeat(), steps_per_epoch=4, epochs=3, verbose=0),
    "validated": lambda m: m.fit(
        X,
        Y,
        batch_size=8,
        epochs=2,
        validation_data=(X[:21], Y[:21]),
        validation_steps=2,
        verbose=0,
    ),
    "a generator": lambda m: m.fit(generated(), verbose=0),
    "one without weights": lambda m: m.fit(unweighted(), verbose=0),
    "an endless one": lambda m: m.fit(endless(), steps_per_epoch=6, epochs=2, verbose=0),
}


# Others show arrays, a dataset and a generator too, and what they hold.
RARE = ("arrays", "dataset", "a generator", "one without weights", "part of an epoch", "no weights")


@pytest.mark.parametrize(
    "how", [pytest.param(h, marks=pytest.mark.exhaustive) if h in RARE else h for h in FITS]
)
def test_numbers_are_those_of_one_step_at_a_time(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr(
        MultiStepBatches,
        "_open",
        lambda self, o=MultiStepBatches._open: opened.append(1) or o(self),
    )
    plain = model()
    expected = FITS[how](plain).history
    with strategy().scope():
        ours = model()
    found = FITS[how](ours).history
    assert opened
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, err_msg=name)
    for a, b in zip(ours.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert ours.evaluate(X, Y, batch_size=8, verbose=0) == pytest.approx(
        plain.evaluate(X, Y, batch_size=8, verbose=0), rel=1e-5
    )
    np.testing.assert_allclose(
        ours.predict(X, batch_size=8, verbose=0),
        plain.predict(X, batch_size=8, verbose=0),
        rtol=1e-4,
        atol=1e-6,
    )


def test_another_batch_size_is_another_static_shape() -> None:
    seen: list[int | None] = []

    class Noted(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            seen.append(x.shape[0])
            return x

    with strategy().scope():
        ours = keras.Sequential([keras.Input((4,)), Noted(), keras.layers.Dense(3)])
        ours.compile("sgd", "mse")
    seen.clear()
    for size in (10, 12, 10):  # four steps an epoch each, so that Keras keeps its function
        ours.fit(X, X[:, :3], batch_size=size, verbose=0)
    assert seen == [None, 10, 12], "once to build the metrics, and once for each size"


def test_what_a_model_is_compiled_with_is_left_to_it() -> None:
    with strategy().scope():
        ours = model()
    ours.fit(X, Y, batch_size=8, verbose=0)
    assert ours.steps_per_execution == 5
    assert ours.get_compile_config()["steps_per_execution"] == 1
    ours.predict(X, batch_size=8, verbose=0)
    assert ours.steps_per_execution == 1, "Keras's predict compiles for the number it sees first"
    with strategy().scope():
        ours = model()
        ours.compile("sgd", "sparse_categorical_crossentropy", steps_per_execution=2)
    ours.fit(X, Y, batch_size=8, verbose=0)
    assert ours.steps_per_execution == 2


def test_a_callback_may_predict_and_evaluate() -> None:
    with strategy().scope():
        ours = model()
    ours.predict(X, batch_size=8, verbose=0)  # Keras makes its function for the number it sees
    said: list[tuple[int, float]] = []

    def look(epoch: int, logs: Any) -> None:
        predicted = ours.predict(X, batch_size=8, verbose=0)
        evaluated = ours.evaluate(X[:21], Y[:21], batch_size=8, verbose=0)[0]
        exact = -np.log(predicted[np.arange(21), Y[:21]]).mean()
        assert evaluated == pytest.approx(exact, rel=1e-5)
        said.append((len(predicted), evaluated))

    watch = keras.callbacks.LambdaCallback(on_epoch_end=look)
    ours.fit(X, Y, batch_size=8, epochs=2, callbacks=[watch], verbose=0)
    assert [rows for rows, _ in said] == [ROWS, ROWS]
    assert ours.steps_per_execution == 5
    assert int(ours.optimizer.iterations.numpy()) == 10


def test_another_number_is_another_function() -> None:
    with strategy().scope():
        ours = model()
    seen: list[int] = []
    watch = keras.callbacks.LambdaCallback(on_train_batch_end=lambda step, logs: seen.append(step))
    for steps in (4, 3):
        ours.fit(batches().repeat(), steps_per_epoch=steps, verbose=0)
        assert ours.steps_per_execution == steps
    ours.fit(X, Y, batch_size=8, callbacks=[watch], verbose=0)
    assert seen == [0, 1, 2, 3, 4]
    assert int(ours.optimizer.iterations.numpy()) == 4 + 3 + 5


class Own(keras.Model):
    """Makes its training function by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(3, activation="softmax")

    def call(self, x: Any) -> Any:
        return self.dense(x)

    def make_train_function(self, force: bool = False) -> None:
        def function(batches: Any) -> Any:
            outputs = self.distribute_strategy.run(self.train_step, args=(next(batches),))
            return {"loss": outputs["loss"]}

        self.train_function = function


@pytest.mark.parametrize("steps", [1, 5])
def test_a_model_that_makes_its_own_function_gets_a_batch_at_a_time(steps: int) -> None:
    with strategy().scope():
        ours = Own()
        ours.compile("sgd", "sparse_categorical_crossentropy", steps_per_execution=steps)
    ours.fit(X, Y, batch_size=8, verbose=0)
    assert int(ours.optimizer.iterations.numpy()) == 5 / steps
    assert ours.steps_per_execution == steps


def test_a_batch_that_is_larger_than_the_first_is_an_error() -> None:
    with strategy().scope():
        ours = model()
    grows = ((X[:rows], Y[:rows]) for rows in (4, 6))
    with pytest.raises(tf.errors.InvalidArgumentError, match="more rows than the first"):
        ours.fit(grows, verbose=0)


@pytest.mark.parametrize(
    ("rows", "partial_batch"),
    [
        # Of each number of rows in the last batch, and of each way to treat them, one in every run.
        pytest.param(rows, how, marks=() if how == always else pytest.mark.exhaustive)
        for rows, always in ((16, "drop"), (21, "pad"), (17, "drop"), (18, "pad"))
        for how in ("pad", "drop")
    ],
)
def test_parts_are_those_of_one_step_at_a_time(rows: int, partial_batch: str) -> None:
    data = tf.data.Dataset.from_tensor_slices((X[:rows], Y[:rows])).batch(8)
    placement = Placement(workers=1, rank=0, local=4)
    passes = MultiStepBatches(data, placement, partial_batch)
    expected = list(Batches(data, placement, ("CPU:0",) * 4, partial_batch)._open())
    for _ in range(2):  # the second pass knows the number of rows
        found = list(passes._open())
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            pairs = (tf.nest.flatten(batch.values) for batch in (ours, theirs))
            for one, other in zip(*pairs, strict=True):
                assert one.shape == other.shape
                np.testing.assert_array_equal(one, other)


class Mine(keras.callbacks.Callback):
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        pass


class OfTests(keras.callbacks.Callback):
    def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:
        pass


class Epochs(keras.callbacks.Callback):
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        pass


@pytest.mark.parametrize(
    ("callback", "sees_batches"),
    [
        (Mine(), True),
        (OfTests(), True),
        (keras.callbacks.LambdaCallback(on_train_batch_begin=lambda *_: None), True),
        (keras.callbacks.ModelCheckpoint("a.keras", save_freq=7), True),
        (keras.callbacks.BackupAndRestore("a", save_freq=7), True),
        (keras.callbacks.TensorBoard("a", update_freq="batch"), True),
        (keras.callbacks.TensorBoard("a"), False),
        (keras.callbacks.ModelCheckpoint("a.keras"), False),
        (keras.callbacks.TerminateOnNaN(), False),
        (keras.callbacks.EarlyStopping(), False),
        (Epochs(), False),
    ],
)
def test_a_callback_that_sees_batches_sees_each(callback: Any, sees_batches: bool) -> None:
    assert choose(64, [], [callback]) == (1 if sees_batches else 32)
