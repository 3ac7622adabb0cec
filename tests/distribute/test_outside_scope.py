"""What was created outside the scope of a strategy is recreated under it, and stays what it was."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.distribute.watched import data, linear, mirrored, under
from tests.support import run_child
from tfaccel.distribute import _private, scope
from tfaccel.distribute.object_graph import reachable_objects
from tfaccel.errors import ScopeError, StrategyError

tracker: Any = None  # of the module, once a test has made it


def owner(variable: Any) -> Any:
    return getattr(variable.value, "distribute_strategy", None)


# --- What a model reaches, without a strategy -------------------------------------------------


class Tools:
    def __init__(self) -> None:
        self.second = keras.optimizers.SGD(name="second")


def closed_over() -> Any:
    captured = keras.layers.Dense(1, name="captured")

    def penalty(x: Any) -> Any:
        return captured(x) + tracker.result()

    return penalty


class Reaching(keras.Model):
    shared: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.tools = Tools()
        self.penalty = closed_over()
        self.count = tf.Variable(0)
        self.listed = [tf.Variable(1), {"a": (tf.Variable(2),)}]


def test_all_that_code_and_attributes_name_is_reached() -> None:
    global tracker
    tracker = keras.metrics.Mean(name="of the module")
    Reaching.shared = keras.metrics.Mean(name="of the class")
    model = Reaching()
    found = reachable_objects(model)
    names = {part.name for part in found.parts}
    assert {"of the module", "of the class", "captured", "second"} <= names
    assert [v.numpy() for v in found.raw] == [0, 1, 2]
    places = [found.places[id(v)] for v in found.raw]
    assert [None in p for p in places] == [False, False, True]
    places[0][0](tf.Variable(5))
    places[1][0](tf.Variable(6))
    assert (int(model.count), int(model.listed[0])) == (5, 6)


def test_a_model_that_shares_a_layer_is_not_reached() -> None:
    x = keras.Input((2,))
    base = keras.layers.Dense(2)
    ours = keras.Model(x, keras.layers.Dense(1, name="ours")(base(x)))
    keras.Model(x, keras.layers.Dense(1, name="theirs")(base(x)))
    assert "theirs" not in {part.name for part in reachable_objects(ours).parts}


# --- Under two replicas -----------------------------------------------------------------------


@pytest.mark.child(devices=2)
def test_everything_keeps_its_identity() -> None:
    model = linear(lambda: keras.optimizers.SGD(0.1, momentum=0.9))
    model.fit(*data(), verbose=0)
    parts = [*model.variables, *model.optimizer.variables, *model.metrics[0].variables]
    before = [(v, v.path, v.numpy(), v.value.trainable, v.value.aggregation) for v in parts]
    with mirrored().scope():
        model.evaluate(*data(), verbose=0)
    model.metrics[0].reset_state()
    for variable, path, value, trainable, aggregation in before[:-2]:
        assert owner(variable) is mirrored()
        assert (variable.path, variable.value.trainable) == (path, trainable)
        np.testing.assert_array_equal(variable.numpy(), value)
        if aggregation != tf.VariableAggregation.ONLY_FIRST_REPLICA:
            assert variable.value.aggregation == aggregation
    assert model.distribute_strategy is mirrored()
    assert all(a is b for a, (b, *_) in zip(model.variables, before, strict=False))


@pytest.mark.child(devices=2)
def test_the_state_of_a_metric_is_not_counted_twice() -> None:
    model = linear()
    total = keras.metrics.Sum()
    total.update_state([2.0, 3.0])
    model.total = total
    scope.check(model, mirrored())
    assert owner(total.variables[0]) is mirrored()
    assert float(total.result()) == 5.0


@pytest.mark.child(devices=2)
def test_a_function_that_was_traced_before_uses_the_new_variables() -> None:
    class Counting(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(1)
            self.dense.build((None, 3))
            self.double = tf.function(lambda: self.dense.bias + self.dense.bias)

        @tf.function
        def bias(self) -> Any:
            return tf.identity(self.dense.bias)

    model = Counting()
    model.bias(), model.double()
    scope.check(model, mirrored())
    model.dense.bias.assign([3.0])
    assert (float(model.bias()[0]), float(model.double()[0])) == (3.0, 6.0)


@pytest.mark.child(devices=2)
def test_a_variable_in_a_tuple_is_refused() -> None:
    model = linear()
    model.kept = Tools()
    model.kept.pair = (tf.Variable(1.0, name="fixed"), 2)
    with pytest.raises(
        ScopeError, match=r"variable 'fixed:0' .* such as a tuple; create it"
    ) as error:
        scope.check(model, mirrored())
    assert "\n" not in str(error.value)


@pytest.mark.child(devices=2)
def test_what_an_optimizer_of_the_scope_cannot_take_over_is_refused() -> None:
    strategy = mirrored()
    variable = tf.Variable([1.0, 2.0])
    layer = keras.layers.Dense(1)
    layer.build((None, 2))
    with strategy.scope():
        optimizers = [keras.optimizers.SGD(0.1, name=f"sgd{i}") for i in range(2)]
    expected = r"optimizer 'sgd{}' was created inside .* trains variable '{}', which .*; create the"
    with pytest.raises(ScopeError, match=expected.format(0, "Variable:0")):
        optimizers[0].apply([tf.ones(2)], [variable])

    @tf.function(autograph=False)
    def step() -> None:
        kernel = layer.trainable_variables[0]
        optimizers[1].apply([tf.ones_like(kernel)], [kernel])

    with pytest.raises(ScopeError, match=expected.format(1, layer.kernel.path)):
        step()


@pytest.mark.child(devices=2)
def test_another_strategy_is_refused() -> None:
    other = tf.distribute.MirroredStrategy(["CPU:0"])
    with other.scope():
        model = linear()
    with pytest.raises(
        ScopeError, match=r"was created under another strategy .* create the model again"
    ):
        scope.check(model, mirrored())


@pytest.mark.child(devices=2)
def test_it_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    model = linear()
    with caplog.at_level("INFO", "absl"):
        scope.check(model, mirrored())
        scope.check(model, mirrored())
    said = [m for m in caplog.messages if "created outside the scope" in m]
    assert len(said) == 1
    assert "dense" in said[0]
    assert "sgd" in said[0].lower()


@pytest.mark.child(devices=2)
def test_unseeded_random_operations_draw_from_a_state_of_the_strategy() -> None:
    keras.random.normal((2,))
    model = linear()
    scope.check(model, mirrored())
    generator = _private.global_seed_generator()
    assert generator is not None
    assert owner(generator.state) is mirrored()
    keras.random.normal((2,))  # and outside of it they still can


@pytest.mark.child(devices=2)
def test_a_bare_trainer_is_trained_as_a_model_is() -> None:
    class Bare(_private.TensorFlowTrainer, keras.layers.Dense):
        def __init__(self) -> None:
            keras.layers.Dense.__init__(self, 1, kernel_initializer="ones")
            _private.TensorFlowTrainer.__init__(self)

        def __setattr__(self, name: str, value: Any) -> None:
            keras.layers.Layer.__setattr__(self, name, value)

    def made() -> Any:
        layer = Bare()
        layer.compile(keras.optimizers.SGD(0.1), "mse")
        return layer

    found = []
    for layer in (made(), under(mirrored(), made)):
        history = layer.fit(*data(), batch_size=5, epochs=2, shuffle=False, verbose=0).history
        found.append([*history["loss"], *layer.predict(data()[0], verbose=0)[:, 0]])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)


@pytest.mark.child(devices=2)
def test_one_batch_is_predicted_before_anything_is_built() -> None:
    with mirrored().scope():
        model = keras.Sequential([keras.layers.Dense(2, kernel_initializer="ones")])
    x, _ = data()
    np.testing.assert_allclose(
        model.predict_on_batch(x), np.repeat(x.sum(1, keepdims=True), 2, 1), rtol=1e-5
    )


@pytest.mark.child(devices=2)
def test_a_variable_made_in_every_step_gets_one_line() -> None:
    class Making(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def train_step(self, batch: Any) -> Any:
            return {"made": tf.Variable(tf.reduce_sum(batch[0]), name="made")}

    with mirrored().scope():
        model = Making()
        model.compile()
    with pytest.raises(StrategyError, match="variable 'made' is created inside a step") as error:
        model.fit(*data(), verbose=0)
    assert "\n" not in str(error.value)


@pytest.mark.child(devices=2)
def test_variables_read_as_numbers() -> None:
    with mirrored().scope():
        model = linear(lambda: keras.optimizers.SGD(0.5))
        mean = keras.metrics.Mean()
    rate, iterations = model.optimizer.learning_rate, model.optimizer.iterations
    for value in (rate, rate.value):
        assert (float(value), int(value)) == (0.5, 0)
        np.testing.assert_array_equal(np.asarray(value), np.float32(0.5))
        assert np.array(value, "float64").dtype == "float64"
    assert (int(iterations), complex(iterations.value), bool(iterations.value)) == (0, 0, False)
    assert keras.ops.convert_to_numpy(rate) == 0.5
    assert f"{float(rate):.2f} {rate.value.numpy() * 2}" == "0.50 1.0"
    assert float(mean.variables[0]) == 0.0
    assert np.asarray(model.weights[0].value).tolist() == [[1.0]] * 3
    assert type(rate.value).__name__ == "MirroredVariable"


def test_after_an_error_an_unused_strategy_is_not_reported() -> None:
    script = "import tfaccel; s = tfaccel.strategy('mirrored', device_type='cpu', devices=2); {}"
    line = "nothing was trained under strategy"
    assert line in run_child(["-c", script.format("print()")])
    wrong = run_child(["-c", script.format("raise KeyError('mine')")], codes=(1,))
    assert "KeyError: 'mine'" in wrong
    assert line not in wrong
