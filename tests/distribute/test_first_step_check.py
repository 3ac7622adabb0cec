"""The first-step check: it names what replicas would make otherwise, and nothing else."""

from __future__ import annotations

import re
from typing import Any
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import logging

from tests.distribute.watched import mirrored
from tfaccel.distribute import compression, first_step_check
from tfaccel.distribute.checked_steps import KINDS
from tfaccel.distribute.sync_frequency import Frequency
from tfaccel.errors import CheckError

pytestmark = pytest.mark.child(devices=2, group="check")

X = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
Y = (X[:, :1] * 2 - X[:, 1:2]).astype("float32")
SGD = keras.optimizers.SGD


def fitted(made: Any, x: Any = X, y: Any = Y, mode: str = "always", **fit: Any) -> keras.Model:
    keras.utils.set_random_seed(5)
    mirrored().checks.mode = mode
    with mirrored().scope():
        model = made()
    model.fit(x, y, **{"batch_size": 8, "shuffle": False, "verbose": 0, **fit})
    return model


def dense(*layers: Any, loss: Any = "mse", **more: Any) -> Any:
    def made() -> keras.Model:
        held = [layer() for layer in layers]
        stack = [keras.Input((4,)), keras.layers.Dense(3), *held, keras.layers.Dense(1)]
        model = keras.Sequential(stack)
        model.compile(SGD(0.1), loss, **{k: v() for k, v in more.items()})
        return model

    return made


class Own(keras.Model):
    def __init__(self, of_loss: Any, more: Any = None) -> None:
        super().__init__()
        self.net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "tanh")])
        self.net.add(keras.layers.Dense(1))
        self.of_loss, self.more = of_loss, more or (lambda model, x, loss: {"loss": loss})

    def call(self, x: Any) -> Any:
        return self.net(x)

    def train_step(self, data: Any) -> Any:
        x, y = data[:2]
        with tf.GradientTape() as tape:
            loss = self.of_loss(self, x, y)
        of = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, of), of)
        return self.more(self, x, loss)


def own(of_loss: Any, more: Any = None) -> Any:
    def made() -> keras.Model:
        model = Own(of_loss, more)
        model.compile(SGD(0.1))
        return model

    return made


def mean_square(model: Any, x: Any, y: Any) -> Any:
    return tf.reduce_mean(tf.square(y - model(x)))


def contrastive(model: Any, x: Any, y: Any) -> Any:
    out = model(x)
    return tf.reduce_mean(tf.square(out - tf.transpose(out)))


def refuses(made: Any, says: str, **fit: Any) -> None:
    # Without its last resort, which makes right whatever can be.
    with (
        mock.patch.object(first_step_check.Checks, "_with_all_rows", return_value=False),
        pytest.raises(CheckError, match=rf"(?s)tfaccel: the first-step check.*{says}") as caught,
    ):
        fitted(made, **fit)
    assert "\n" not in str(caught.value)


def runs_over_all_rows(made: Any, says: str, x: Any = X) -> None:
    y = Y[: len(x)]
    with mock.patch.object(logging, "warning") as warning:
        model = fitted(made, x, y, epochs=2)
    said = [call.args[0] % call.args[1:] for call in warning.call_args_list]
    assert any(
        re.search(f"{says}.*every replica runs the steps of .* over all rows", line)
        for line in said
    ), "\n".join(said)
    assert mirrored().checks.reductions(model).all_rows
    keras.utils.set_random_seed(5)
    plain = made()
    run = plain.fit(x, y, batch_size=8, shuffle=False, verbose=0, epochs=2)
    for key, values in run.history.items():
        np.testing.assert_allclose(model.history.history[key], values, rtol=1e-5)
    for ours, theirs in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.exhaustive  # below `train_on_batch` refuses it, and `fit` runs it over all rows
def test_a_loss_that_compares_rows() -> None:
    refuses(own(contrastive), "gradient of '.*kernel' would be .* on 2 replicas; expected")


@pytest.mark.exhaustive
def test_a_layer_that_compares_rows() -> None:
    class Centred(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return x - keras.ops.mean(x, axis=0, keepdims=True)

    refuses(dense(Centred), "gradient of")


class Keeps(keras.layers.Layer):
    def build(self, shape: Any) -> None:
        self.kept = self.add_weight(shape=(), initializer="zeros", trainable=False, name="kept")


def test_without_the_state_of_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Largest(Keeps):
        def call(self, x: Any) -> Any:
            self.kept.assign(keras.ops.maximum(self.kept, keras.ops.max(x)))
            return x

    monkeypatch.setattr("tfaccel.distribute.fit.aggregate_states", lambda model: None)
    refuses(dense(Largest), "variable '.*kept'")


def test_without_the_state_of_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    class Largest(keras.metrics.Metric):
        def __init__(self) -> None:
            super().__init__(name="largest")
            self.seen = self.add_weight(name="seen", initializer="zeros")

        def update_state(self, y: Any, p: Any, sample_weight: Any = None) -> None:
            self.seen.assign(keras.ops.maximum(self.seen, keras.ops.max(keras.ops.abs(y - p))))

        def result(self) -> Any:
            return self.seen

    monkeypatch.setattr("tfaccel.distribute.fit.aggregate_states", lambda model: None)
    refuses(dense(metrics=lambda: [Largest()]), "metric variable '.*seen'")


def test_a_log_that_no_way_puts_together() -> None:
    def more(model: Any, x: Any, loss: Any) -> Any:
        return {"largest": tf.reduce_max(x)}

    refuses(own(mean_square, more), "log 'largest'")


def test_updates_that_do_not_come_from_the_tape() -> None:
    def of_loss(model: Any, x: Any, y: Any) -> Any:
        kernel = model.net.layers[0].kernel
        kernel.assign_add(0.1 * tf.ones_like(kernel) * tf.reduce_max(x))
        return mean_square(model, x, y)

    refuses(own(of_loss), "gradient of|variable '.*kernel' after a step")


# What only the global batch makes right.


def test_a_loss_that_compares_rows_is_computed_of_all_rows() -> None:
    runs_over_all_rows(own(contrastive), "gradient of '.*kernel' would be", X[:13])


@pytest.mark.exhaustive
def test_a_layer_that_compares_rows_sees_all_rows() -> None:
    class Centred(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return x - keras.ops.mean(x, axis=0, keepdims=True)

    runs_over_all_rows(dense(Centred), "gradient of", X[:13])


@pytest.mark.exhaustive
def test_a_step_for_one_number_of_rows_gets_them_all() -> None:
    def of_loss(model: Any, x: Any, y: Any) -> Any:
        weights = tf.reshape(tf.range(8, dtype=tf.float32), (8, 1))
        return tf.reduce_mean(weights * tf.square(y - model(x)))

    runs_over_all_rows(own(of_loss), "replicas cannot run it")


def late(model: Any, loss: Any) -> Any:
    """A loss that the third step is the first to have."""
    return tf.cast(model.optimizer.iterations >= 2, tf.float32) * loss


def test_a_loss_that_compares_rows_in_a_later_step() -> None:
    def of_loss(model: Any, x: Any, y: Any) -> Any:
        return mean_square(model, x, y) + late(model, contrastive(model, x, y))

    says = r"in a later step, after changes of .*'sgd(_\d+)?/iteration'; expected"
    runs_over_all_rows(own(of_loss), says)


def test_a_loss_of_each_row_in_a_later_step_is_shared() -> None:
    def of_loss(model: Any, x: Any, y: Any) -> Any:
        return mean_square(model, x, y) + late(model, tf.reduce_mean(tf.abs(model(x))))

    model = fitted(own(of_loss))
    assert not mirrored().checks.reductions(model).all_rows


def test_a_later_step_that_one_device_cannot_take_is_not_compared() -> None:
    def of_loss(model: Any, x: Any, y: Any) -> Any:
        return mean_square(model, x, y) * tf.gather([1.0, 0.5], model.optimizer.iterations)

    model = fitted(own(of_loss))
    assert int(model.optimizer.iterations) == 2
    assert not mirrored().checks.reductions(model).all_rows


def test_a_queue_of_the_newest_rows_is_that_of_all_rows() -> None:
    def made() -> keras.Model:
        def more(model: Any, x: Any, loss: Any) -> Any:
            model.queue.assign(tf.concat([x, model.queue[: -tf.shape(x)[0]]], axis=0))
            return {"loss": loss}

        model = Own(mean_square, more)
        model.queue = model.add_weight(shape=(10, 4), initializer="zeros", trainable=False)
        model.compile(SGD(0.1))
        return model

    runs_over_all_rows(made, "variable '.*' would be")


# What is written for the global batch.


@pytest.mark.parametrize("way", [pytest.param("sum", marks=pytest.mark.exhaustive), "scaled_mean"])
def test_the_way_of_a_loss_is_found(way: str) -> None:
    def of_loss(model: Any, x: Any, y: Any) -> Any:
        rows = tf.reduce_sum(tf.square(y - model(x)), axis=1)
        if way == "sum":
            return tf.nn.compute_average_loss(rows, global_batch_size=8)
        return tf.reduce_mean(rows) / tf.distribute.get_strategy().num_replicas_in_sync

    model = fitted(own(of_loss), epochs=2)
    ways = mirrored().checks.reductions(model)
    assert (ways.gradients, dict(ways.logs)) == ((way,), {"loss": way})
    keras.utils.set_random_seed(5)
    plain = own(of_loss)()
    history = plain.fit(X, Y, batch_size=8, shuffle=False, verbose=0, epochs=2).history
    assert model.history.history["loss"] == pytest.approx(history["loss"], rel=1e-5)
    for ours, theirs in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


# What it leaves alone.


class Noisy(Own):
    """Draws, counts, keeps tensors and functions of its own."""

    traces = 0
    last: Any = None

    def __init__(self) -> None:
        super().__init__(mean_square)
        self.noise = keras.layers.GaussianNoise(0.1, seed=3)
        self.drop = keras.layers.Dropout(0.3, seed=4)
        self.norm = keras.layers.BatchNormalization()
        self.told = keras.metrics.Mean(name="told")

    def call(self, x: Any, training: Any = None) -> Any:
        x = self.noise(self.norm(x, training=training), training=training)
        return self.net(self.drop(x, training=training))

    @tf.function
    def of_function(self, x: Any, y: Any) -> Any:
        return tf.reduce_mean(tf.square(y - self(x, training=True) + tf.random.normal([])))

    def train_step(self, data: Any) -> Any:
        x, y = data
        self.traces += 1
        with tf.GradientTape() as tape:
            loss = self.of_function(x, y)
        self.last = loss
        of = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, of), of)
        self.told.update_state(loss)
        return {"loss": self.told.result()}


def noisy() -> keras.Model:
    model = Noisy()
    model.compile(keras.optimizers.Adam(0.01))
    return model


def test_the_check_leaves_no_state_behind() -> None:
    checked = fitted(noisy, epochs=2)
    unchecked = fitted(noisy, epochs=2, mode="off")
    assert checked.traces == unchecked.traces
    assert int(checked.optimizer.iterations.numpy()) == 4
    assert checked.history.history == unchecked.history.history
    pairs = zip(checked.variables, unchecked.variables, strict=True)
    for ours, theirs in pairs:
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.exhaustive  # above they leave no state behind; eager ones are in ..._check_kinds.py
@pytest.mark.parametrize("eager", [False, True])
def test_random_layers_agree(eager: bool) -> None:
    def made() -> keras.Model:
        model = noisy()
        model.run_eagerly = eager
        return model

    fitted(made)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        pytest.param(
            "gradient_compression", compression.parse("bfloat16"), marks=pytest.mark.exhaustive
        ),
        pytest.param("frequency", Frequency("local"), marks=pytest.mark.exhaustive),
        ("frequency", Frequency(local_steps=2)),
    ],
    ids=["gradient_compression", "gradient_accumulation", "local_steps"],
)
def test_it_runs_where_gradients_travel_otherwise(
    option: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With that switched off: it would be another number by itself."""
    monkeypatch.setattr(mirrored(), option, value)

    def accumulates(of_loss: Any) -> Any:
        def made() -> keras.Model:
            model = Own(of_loss)
            model.compile(SGD(0.1, gradient_accumulation_steps=2))
            return model

        return made

    model = fitted(accumulates(mean_square))
    assert int(model.optimizer.iterations.numpy()) == 1
    refuses(accumulates(contrastive), "gradient of")


def test_train_on_batch_is_checked_too() -> None:
    with mirrored().scope():
        model = own(contrastive)()
    without = mock.patch.object(first_step_check.Checks, "_with_all_rows", return_value=False)
    with without, pytest.raises(CheckError, match="gradient of"):
        model.train_on_batch(X[:8], Y[:8])
    with mirrored().scope():
        model = own(mean_square)()
    model.train_on_batch(X[:8], Y[:8])


def test_a_batch_with_several_rows_for_one_is_checked_by_train_on_batch() -> None:
    class Pairs(Own):
        def train_step(self, data: Any) -> Any:
            (more, x), y = data[:2]
            pairs = tf.reshape(more, (-1, 8))
            return super().train_step((x, y - tf.reduce_mean(pairs, axis=1, keepdims=True)))

    with mirrored().scope(), mock.patch.object(logging, "warning") as warned:
        model = Pairs(mean_square)
        model.compile(SGD(0.1))
        model.train_on_batch((X, X[:8]), Y[:8])
    assert not warned.called


def test_it_runs_once_for_each_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    plain = first_step_check.Checks._check
    monkeypatch.setattr(first_step_check.Checks, "_check", lambda *args: ran.append(plain(*args)))
    model = fitted(own(mean_square))
    model.fit(X[:7], Y[:7], batch_size=7, verbose=0)
    assert len(ran) == 1
    with mirrored().scope():
        model.compile(SGD(0.2))
    model.fit(X, Y, batch_size=8, verbose=0)
    assert len(ran) == 2


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (own(lambda m, x, y: mean_square(m, tf.ensure_shape(x, [4, 4]), y)), "4"),
        (own(lambda m, x, y: mean_square(m, x, y) * tf.random.gamma([], 1.0)), "RandomGamma"),
    ],
)
def test_what_cannot_be_checked_trains(made: Any, says: str) -> None:
    with mock.patch.object(logging, "warning") as warned:
        model = fitted(made)
    said = [call.args[0] % call.args[1:] for call in warned.call_args_list]
    assert any("was not checked" in line and says in line for line in said), said
    assert int(model.optimizer.iterations.numpy()) == 2


def test_a_batch_of_one_row_for_each_replica_trains() -> None:
    fitted(own(mean_square), X[:2], Y[:2], batch_size=2)


def test_auto_checks_models_with_parts_of_their_own() -> None:
    class Mine(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return x

    def mine(y: Any, p: Any) -> Any:
        return keras.ops.mean(keras.ops.abs(y - p), axis=-1)

    def checked(made: Any) -> bool:
        model = made()
        model.evaluate(X[:2], Y[:2], verbose=0)
        return first_step_check.has_custom_parts(model, model.train_step)

    assert not checked(dense())
    assert not checked(dense(loss=keras.losses.Huber(), metrics=lambda: ["mae"]))
    assert checked(dense(Mine))
    assert checked(dense(lambda: keras.layers.Lambda(lambda x: x)))
    assert checked(dense(loss=mine))
    assert checked(dense(metrics=lambda: [mine]))
    assert first_step_check.is_custom_step(own(mean_square)().train_step)


def test_auto_checks_functions_that_layers_of_keras_apply_to_rows() -> None:
    def custom(*layers: Any, of: Any = None) -> bool:
        inputs = keras.Input((4,))
        outputs = inputs
        for layer in layers:
            outputs = layer(outputs)
        model = keras.Model(inputs, of(outputs) if of else outputs)
        return first_step_check.has_custom_parts(model, model.predict_step)

    def mine(x: Any) -> Any:
        return x - keras.ops.mean(x, axis=0)

    dense_layer = keras.layers.Dense
    assert not custom(dense_layer(3, "relu", activity_regularizer="l2"))
    assert not custom(dense_layer(3, kernel_regularizer=mine, bias_initializer="ones"))
    assert not custom(dense_layer(3), of=lambda x: 2.0 * x + 1.0)
    assert custom(dense_layer(3, mine))
    assert custom(dense_layer(3, activity_regularizer=mine))
    assert custom(keras.layers.Softmax(axis=0))
    assert custom(keras.layers.Reshape((4, 1)), keras.layers.GRU(2, recurrent_activation=mine))
    assert custom(dense_layer(3), of=lambda x: x - keras.ops.mean(x, axis=0))
    assert custom(keras.Sequential([dense_layer(3, mine)]))


def test_a_step_of_its_own_to_test_and_predict_sees_all_rows() -> None:
    class Ranks(Own):
        def test_step(self, data: Any) -> Any:
            return {"spread": tf.math.reduce_std(self(data[0]))}

        def predict_step(self, data: Any) -> Any:
            return tf.nn.softmax(self(data), axis=0)  # Keras gives rows alone as they are

    def made() -> keras.Model:
        model = Ranks(mean_square)
        model.compile(SGD(0.1))
        return model

    model, checks = fitted(made), mirrored().checks
    spread = model.evaluate(X, Y, batch_size=8, verbose=0, return_dict=True)["spread"]
    ranks = model.predict(X, batch_size=8, verbose=0)
    found = [checks.reductions(model, kind).all_rows for kind in KINDS]
    assert found == [False, True, True]
    outputs = [np.asarray(model(half)) for half in (X[:8], X[8:])]
    np.testing.assert_allclose(spread, np.std(outputs[1]), rtol=1e-5)  # of the last batch
    wanted = [np.exp(o) / np.sum(np.exp(o), axis=0) for o in outputs]
    np.testing.assert_allclose(ranks, np.concatenate(wanted), rtol=1e-5)


def test_a_step_of_its_own_that_goes_row_by_row_is_shared() -> None:
    class Sums(Own):
        def predict_step(self, data: Any) -> Any:
            return {"rows": self(data), "sums": tf.reduce_sum(data, axis=1)}

    def made() -> keras.Model:
        model = Sums(mean_square)
        model.compile(SGD(0.1))
        return model

    model = fitted(made)
    found = model.predict(X, batch_size=8, verbose=0)
    assert not mirrored().checks.reductions(model, "predict").all_rows
    np.testing.assert_allclose(found["sums"], X.sum(axis=1), rtol=1e-5)
