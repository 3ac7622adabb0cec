"""The first-step check on a mesh: it names what DTensor makes otherwise, and leaves nothing."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import logging

from tests.model_parallel import test_training
from tfaccel.distribute.differences import differences
from tfaccel.distribute.model_parallel import host_parity, mesh_check, rewrites
from tfaccel.distribute.model_parallel.variable import MeshVariable
from tfaccel.distribute.rounding import beyond_rounding
from tfaccel.distribute.step_result import ParityRunError
from tfaccel.errors import CheckError

strategy = functools.partial(test_training.strategy, check="auto")
pytestmark = [pytest.mark.slow, pytest.mark.child(devices=4, group="check")]

_RNG = np.random.default_rng(0)
X, Y = _RNG.normal(size=(16, 6)).astype("float32"), _RNG.normal(size=(16, 2)).astype("float32")
Made = Callable[[], keras.Model]


class Reverses(keras.layers.Layer):
    """Turns the rows of a batch around: without its rewriting, DTensor turns those of each part."""

    def call(self, x: Any) -> Any:
        return x[::-1]


class Remembers(keras.layers.Layer):
    """Keeps the last row in a variable, and gives what it is given."""

    def build(self, shape: Any) -> None:
        self.kept = self.add_weight(shape=(6,), initializer="zeros", trainable=False, name="kept")

    def call(self, x: Any) -> Any:
        self.kept.assign(x[::-1][0])
        return x


class OfTheLast(keras.metrics.Metric):
    """The first number of the last row."""

    def __init__(self) -> None:
        super().__init__(name="last")
        self.seen = self.add_weight(name="seen", initializer="zeros")

    def update_state(self, y: Any, p: Any, sample_weight: Any = None) -> None:
        self.seen.assign(y[::-1][0, 0])

    def result(self) -> Any:
        return self.seen


def dense(*before: Any, optimizer: Any = None, **more: Any) -> Made:
    def made() -> keras.Model:
        layers = [layer() for layer in before]
        layers = [*layers, keras.layers.Dense(8, "tanh", name="first"), keras.layers.Dense(2)]
        model = keras.Sequential([keras.Input((6,)), *layers])
        model.compile(
            (optimizer or functools.partial(keras.optimizers.SGD, 0.1))(),
            "mse",
            **{key: value() for key, value in more.items()},
        )
        return model

    return made


def fitted(made: Made, mode: str = "auto", layouts: str = "auto", **fit: Any) -> keras.Model:
    ours = strategy(layouts)
    ours.check = mode
    keras.utils.set_random_seed(5)
    with ours.scope():
        model = made()
    model.fit(X, Y, **{"batch_size": 8, "shuffle": False, "verbose": 0, **fit})
    return model


def refuses(made: Made, *says: str) -> None:
    with pytest.raises(CheckError, match=r"^tfaccel: the first-step check found that ") as caught:
        fitted(made)
    line = str(caught.value)
    assert "\n" not in line
    assert "on the mesh batch=2,model=2; expected" in line
    for part in says:
        assert part in line, line


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Takes rewritings of operations out."""

    def out(*types: str) -> None:
        for kind in types:
            monkeypatch.delitem(rewrites.REWRITES, kind)

    return out


# What is wrong on purpose.


def test_an_operation_that_is_laid_out_wrongly(without: Any) -> None:
    fitted(dense(Reverses))
    without("StridedSlice", "StridedSliceGrad")
    refuses(dense(Reverses), "log 'loss'", "layer 'reverses", "(Reverses) is the first whose")


@pytest.mark.exhaustive
def test_the_state_of_a_layer(without: Any) -> None:
    fitted(dense(Remembers))
    without("StridedSlice", "StridedSliceGrad")
    refuses(dense(Remembers), "variable 'sequential", "/kept'", "no layer's output differs")


def test_the_state_of_a_metric(without: Any) -> None:
    made = dense(metrics=lambda: [OfTheLast()])
    fitted(made)
    without("StridedSlice", "StridedSliceGrad")
    refuses(made, "metric variable 'last/seen'", "no layer's output differs")


def doubled(self: Any, stored: tf.Tensor) -> tf.Tensor:
    """What a divided kernel is computed with, and twice its gradient."""

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def read(value: tf.Tensor) -> Any:
        return tf.identity(value), lambda gradient: 2 * gradient

    return read(stored)


@pytest.mark.parametrize("optimizer", [pytest.param("sgd", marks=pytest.mark.exhaustive), "adam"])
def test_a_wrong_gradient(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the kernels that are divided alone."""

    monkeypatch.setattr(MeshVariable, "_as_computed", doubled)
    of = "adam/sequential" if optimizer == "adam" else "variable 'sequential"
    made = {"sgd": functools.partial(keras.optimizers.SGD, 0.1), "adam": keras.optimizers.Adam}
    refuses(dense(optimizer=made[optimizer]), of, "first", "no layer's output differs")


# Steps that test and predict.


class ComparesRows(keras.Sequential):
    """Trains as Keras does; its `test_step` compares each row with the one across."""

    def test_step(self, data: Any) -> Any:
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        loss = tf.reduce_mean(tf.square(self(x, training=False) - y[::-1]))
        return {"loss": loss}

    def predict_step(self, data: Any) -> Any:
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        return {"turned": self(x, training=False)[::-1]}


def with_steps() -> keras.Model:
    model = ComparesRows([keras.Input((6,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


def made_in(scope: Any, made: Made) -> keras.Model:
    strategy()  # before anything else uses TensorFlow
    keras.utils.set_random_seed(5)
    with scope:
        return made()


FIRST: dict[str, Callable[[keras.Model], Any]] = {
    "evaluate": lambda model: model.evaluate(X, Y, batch_size=8, verbose=0),
    "test_on_batch": lambda model: model.test_on_batch(X, Y),
    "predict": lambda model: model.predict(X, batch_size=8, verbose=0),
    "predict_on_batch": lambda model: model.predict_on_batch(X),
}


def methods(*always: str) -> Any:
    marks = {name: () if name in always else pytest.mark.exhaustive for name in FIRST}
    return pytest.mark.parametrize("method", [pytest.param(m, marks=marks[m]) for m in FIRST])


@methods("predict")
def test_a_step_of_keras_that_is_the_first(method: str, without: Any) -> None:
    want = FIRST[method](made_in(contextlib.nullcontext(), dense(Reverses)))
    model = made_in(strategy().scope(), dense(Reverses))
    before = [v.numpy() for v in model.variables]
    np.testing.assert_allclose(FIRST[method](model), want, rtol=1e-5)
    np.testing.assert_array_equal(before[0], model.variables[0])
    without("StridedSlice", "StridedSliceGrad")
    model = made_in(strategy().scope(), dense(Reverses))
    with pytest.raises(CheckError, match=r"the first-step check found that .*Reverses"):
        FIRST[method](model)


@methods("predict_on_batch")
def test_a_step_of_the_users_own_after_training(method: str, without: Any) -> None:
    model = fitted(with_steps)
    FIRST[method](model)
    without("StridedSlice", "StridedSliceGrad")
    model = fitted(with_steps)  # which trains as Keras does
    with pytest.raises(CheckError, match=r"the first-step check found that .*on the mesh"):
        FIRST[method](model)


@pytest.mark.exhaustive
def test_validation_in_fit_is_compared(without: Any) -> None:
    without("StridedSlice", "StridedSliceGrad")
    with pytest.raises(CheckError, match="log 'loss' would be"):
        fitted(with_steps, validation_data=(X, Y))


@pytest.mark.exhaustive
def test_a_model_that_is_built_by_what_it_predicts(without: Any) -> None:
    def made() -> keras.Model:
        model = keras.Sequential([Reverses(), keras.layers.Dense(2)])
        model.compile()
        return model

    want = FIRST["predict_on_batch"](made_in(contextlib.nullcontext(), made))
    got = FIRST["predict_on_batch"](made_in(strategy().scope(), made))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    without("StridedSlice", "StridedSliceGrad")
    with pytest.raises(CheckError, match="output 0 of predict would be"):
        FIRST["predict_on_batch"](made_in(strategy().scope(), made))


# What it leaves alone.


class Rounds(keras.layers.Layer):
    """Adds a sum that is 4, 1 when added in the order of the rows, and 2 by halves of them."""

    def call(self, x: Any) -> Any:
        numbers = tf.constant([[1e8], [1.0], [-1e8], [1.0]] * 2)
        return x + tf.reduce_sum(numbers * tf.exp(0.0 * x), axis=0)


def test_rounding_as_large_as_one_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted(dense(Rounds))

    def unknown(self: Any) -> Any:
        raise ParityRunError("no float64")

    monkeypatch.setattr(host_parity.HostParityRun, "in_double_precision", unknown)
    refuses(dense(Rounds), "log 'loss'")


class Gate(keras.layers.Layer):
    """Adds a ReLU of a number that is 1.5e-8, or 0 where it is added by halves of the rows."""

    def build(self, shape: Any) -> None:
        self.shift = self.add_weight(shape=(), initializer=keras.initializers.Constant(0.3))

    def call(self, x: Any) -> Any:
        numbers = tf.constant([[1.0], [0.0], [0.0], [0.0], [-1.0], [2.0**-26], [0.0], [0.0]])
        total = tf.reduce_sum(numbers * tf.exp(0.0 * x), axis=0)
        return x + tf.nn.relu(total + (self.shift - 0.3))


def test_a_gradient_that_passes_or_not_by_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    with mock.patch.object(mesh_check, "beyond_rounding", wraps=beyond_rounding) as judged:
        fitted(dense(Gate))
    (one_device, exact) = judged.call_args.args[1:3]
    assert not differences(one_device, exact, 1e-5)  # one device shows nothing of it
    monkeypatch.setattr(MeshVariable, "_as_computed", doubled)
    refuses(dense(Gate), "variable 'sequential", "first", "no layer's output differs")


class Noisy(keras.Model):
    """Draws in every way that a mesh has, counts, and keeps a tensor."""

    traces = 0
    last: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.drop = keras.layers.Dropout(0.3, seed=4)
        self.noise = keras.layers.GaussianNoise(0.1, seed=3)
        self.norm = keras.layers.BatchNormalization()
        self.net = keras.Sequential([keras.layers.Dense(8, "tanh"), keras.layers.Dense(2)])

    def call(self, x: Any, training: bool = False) -> Any:
        x = self.noise(self.norm(x, training=training), training=training)
        x += 0.1 * tf.random.stateless_uniform(tf.shape(x), [1, 2]) + tf.random.normal([6], seed=7)
        return self.net(self.drop(x, training=training))

    def train_step(self, data: Any) -> Any:
        self.traces += 1
        said = super().train_step(data)
        self.last = said["loss"]
        return said


def noisy() -> keras.Model:
    model = Noisy()
    model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"])
    return model


@pytest.mark.parametrize(
    "layouts", ["auto", pytest.param("fully_sharded", marks=pytest.mark.exhaustive)]
)
def test_the_check_leaves_no_state_behind(layouts: str) -> None:
    with mock.patch.object(logging, "warning") as warned:
        compared = fitted(noisy, layouts=layouts, epochs=2)
    assert not [call for call in warned.call_args_list if "was not checked" in call.args[0]]
    plain = fitted(noisy, "off", layouts, epochs=2)
    assert compared.traces == plain.traces
    assert int(compared.optimizer.iterations.numpy()) == 4
    assert compared.history.history == plain.history.history
    held = zip(
        [*compared.variables, *compared.optimizer.variables],
        [*plain.variables, *plain.optimizer.variables],
        strict=True,
    )
    for ours, theirs in held:
        np.testing.assert_array_equal(ours, theirs)


def test_it_runs_once_for_each_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    plain = mesh_check.MeshChecks._compare
    monkeypatch.setattr(mesh_check.MeshChecks, "_compare", lambda *args: ran.append(plain(*args)))
    model = fitted(dense(), steps_per_epoch=1)
    model.evaluate(X, Y, verbose=0)
    model.train_on_batch(X[:8], Y[:8])
    assert len(ran) == 1
    with strategy("auto").scope():
        model.compile(keras.optimizers.SGD(0.2), "mae")
    model.train_on_batch(X[:8], Y[:8])
    assert len(ran) == 2
    fitted(dense(), "off", steps_per_epoch=1)
    assert len(ran) == 2


def in_a_function() -> keras.Model:
    draw = tf.function(lambda x: x + tf.random.stateless_normal([6], [1, 2]))
    return dense(lambda: keras.layers.Lambda(draw))()


@pytest.mark.parametrize(
    ("made", "says"),
    [(in_a_function, "random numbers"), (dense(), "check='always'")],
)
def test_what_is_not_compared_trains(
    made: Made, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_parity, "MAX_BYTES", 300 if "always" in says else 1 << 30)
    with mock.patch.object(logging, "warning") as warned:
        model = fitted(made)
    said = [call.args[0] % call.args[1:] for call in warned.call_args_list]
    assert any("was not checked" in line and says in line for line in said), said
    assert int(model.optimizer.iterations.numpy()) == 2


@pytest.mark.exhaustive
def test_always_compares_what_is_large(without: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_parity, "MAX_BYTES", 300)
    without("StridedSlice", "StridedSliceGrad")
    with pytest.raises(CheckError, match="Reverses"):
        fitted(dense(Reverses), "always")


def test_variables_of_tensorflow_are_restored() -> None:
    class Counts(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.inner = keras.layers.Dense(2)
            self.steps = tf.Variable(0, dtype="int64")

        def call(self, x: Any) -> Any:
            return self.inner(x)

        def train_step(self, data: Any) -> Any:
            self.steps.assign_add(1)
            return super().train_step(data)

    with strategy().scope():
        model = Counts()
        model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(X, Y, batch_size=8, epochs=2, verbose=0)
    assert int(model.steps.numpy()) == 4


def test_a_metric_may_return_the_value_of_its_variable() -> None:
    class Rows(keras.metrics.Metric):
        def __init__(self) -> None:
            super().__init__(name="rows")
            self.seen = self.add_weight(name="seen", initializer="zeros")

        def update_state(self, y: Any, p: Any, sample_weight: Any = None) -> None:
            self.seen.assign_add(tf.cast(tf.shape(y)[0], "float32"))

        def result(self) -> Any:
            return self.seen.value

    with strategy().scope():
        model = dense(metrics=lambda: [Rows()])()
    assert model.fit(X, Y, batch_size=8, verbose=0).history["rows"] == [16]
