"""Losses of the global batch, and add_loss of rows, under uneven shares against one device."""

from __future__ import annotations

import logging
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfaccel
from tests.conformance.models import hard_triplets
from tests.distribute.watched import mirrored
from tfaccel.distribute import fit, row_gather
from tfaccel.errors import StrategyError

pytestmark = pytest.mark.child(devices=2, group="pair")

ROWS = 7


def data(rows: int = ROWS) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 5)).astype("float32")
    return x, (rng.uniform(size=(rows, 3)) > 0.5).astype("float32")


def dense(activation: str = "sigmoid", *layers: Any) -> keras.Model:
    return keras.Sequential([keras.Input((5,)), keras.layers.Dense(3, activation), *layers])


def root_mean_square(y: Any, p: Any) -> Any:
    return tf.sqrt(tf.reduce_mean(tf.square(y - p)))


def product(y: Any, p: Any) -> Any:
    return tf.reduce_prod(1 + 0.1 * tf.square(y - p))


class Masked(keras.losses.Loss):
    """Called in its own way; of rows that all have nothing to count it would say NaN."""

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        counts = tf.cast(tf.reduce_sum(y_true, 1, keepdims=True) > 1, tf.float32)
        return tf.reduce_sum(counts * tf.square(y_true - y_pred)) / tf.reduce_sum(counts)


class Rows(keras.losses.Loss):
    def call(self, y_true: Any, y_pred: Any) -> Any:
        return hard_triplets(tf.argmax(y_true, 1), y_pred)


MEANS: dict[str, Any] = {
    "dice": keras.losses.Dice,
    "tversky": lambda: keras.losses.Tversky(0.3, 0.7),
    "root_mean_square": lambda: root_mean_square,
    "product": lambda: product,
    "masked": Masked,
    "rows": Rows,
    "rows_summed": lambda: Rows(reduction="sum"),
    "squares": lambda: "mse",
}
# Of which the others are like one, or a metric below.
SOME = {name: MEANS[name] for name in ("dice", "product", "masked", "rows", "squares")}
VECTORS: dict[str, Any] = {
    "dice": lambda: keras.losses.Dice(reduction=None),
    "rows": lambda: Rows(reduction="none"),
    "squares": lambda: keras.losses.MeanSquaredError(reduction=None),
    "mean_of_squares": lambda: "mse",
}


def heads(names: Any) -> keras.Model:
    """A model with an output for each name."""
    x = keras.Input((5,))
    h = keras.layers.Dense(4, "tanh")(x)
    return keras.Model(x, {n: keras.layers.Dense(3, "sigmoid", name=n)(h) for n in names})


def trained(scope: Any, make: Any, rows: int = ROWS, weight: Any = None, **more: Any) -> Any:
    keras.utils.set_random_seed(3)
    with scope.scope():
        model = make()
        loss = more.pop("loss")()
        model.compile(**{"optimizer": keras.optimizers.SGD(0.05), "loss": loss, **more})
    if scope is not mirrored():  # as a strategy does; else the step would be traced twice
        model.optimizer.build(model.trainable_variables)
    x, y = (part[:rows] for part in data())
    targets = dict.fromkeys(loss, y) if isinstance(loss, dict) else y
    given = {"x": x, "y": targets, "batch_size": 5, "verbose": 0}
    if weight is not None:
        given["sample_weight"] = dict.fromkeys(loss, weight) if isinstance(loss, dict) else weight
    fitted = model.fit(**given, epochs=2, shuffle=False)
    tested = model.evaluate(**given)
    return [*(np.asarray(v) for v in fitted.history.values()), tested, *model.get_weights()]


def same(make: Any, **more: Any) -> None:
    """Trains on two replicas and on one device."""
    one, two = (trained(s, make, **more) for s in (tf.distribute.get_strategy(), mirrored()))
    for expected, found in zip(one, two, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def of_each_head(losses: dict[str, Any], **more: Any) -> None:
    def made() -> dict[str, Any]:
        return {name: loss() for name, loss in losses.items()}

    same(lambda: heads(losses), loss=made, **more)


@pytest.mark.parametrize(
    ("losses", "eagerly"),
    [
        (SOME, False),
        pytest.param(MEANS, False, marks=pytest.mark.exhaustive),
        ({"dice": MEANS["dice"], "masked": MEANS["masked"]}, True),
        pytest.param(MEANS, True, marks=pytest.mark.exhaustive),
        (VECTORS, False),
        pytest.param(VECTORS, True, marks=pytest.mark.exhaustive),
    ],
)
def test_losses_of_the_batch_are_those_of_one_device(losses: Any, eagerly: bool) -> None:
    of_each_head(losses, run_eagerly=eagerly)


@pytest.mark.parametrize(
    "loss",
    [
        "dice",
        pytest.param("rows", marks=pytest.mark.exhaustive),
        pytest.param("squares", marks=pytest.mark.exhaustive),
        pytest.param("mean_of_squares", marks=pytest.mark.exhaustive),
    ],
)
def test_also_of_one_output_and_of_fewer_rows_than_replicas(loss: str) -> None:
    same(dense, loss=VECTORS[loss], rows=6)


def test_also_with_sample_weights() -> None:
    weight = np.linspace(0.0, 2.0, ROWS).astype("float32")
    of_each_head({name: MEANS[name] for name in ("dice", "rows", "squares")}, weight=weight)


@pytest.mark.exhaustive
@pytest.mark.parametrize("losses", [MEANS, VECTORS])
def test_also_in_batches_that_are_filled_up(losses: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(fit.KerasFit, "partial_batch", "pad")
    # One number beside vectors counts once for each row, and copies are rows too.
    alone = losses is VECTORS
    of_each_head({n: losses[n] for n in losses if not alone or n in ("rows", "squares")})


def mean_square(y: Any, p: Any) -> Any:
    return tf.reduce_mean(tf.square(y - p))


# Of six the last batch has one.
@pytest.mark.parametrize(
    "rows", [6, *(pytest.param(rows, marks=pytest.mark.exhaustive) for rows in (7, 1))]
)
def test_metrics_of_the_batch_are_those_of_one_device(rows: int) -> None:
    metrics = [root_mean_square, product, mean_square]
    same(dense, loss=lambda: "mse", metrics=metrics, rows=rows)


def test_a_metric_that_is_a_mean_of_rows_gathers_nothing(monkeypatch: Any) -> None:
    gathered = []
    plain = row_gather.gather_rows
    monkeypatch.setattr(
        row_gather, "gather_rows", lambda *a, **k: gathered.append(1) or plain(*a, **k)
    )
    trained(mirrored(), dense, loss=lambda: "mse", metrics=[mean_square])
    assert not gathered
    trained(mirrored(), dense, loss=lambda: "mse", metrics=[root_mean_square])
    assert gathered


@pytest.mark.exhaustive
def test_also_in_sixteen_bits() -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        results = [
            trained(strategy, dense, loss=keras.losses.Dice)
            for strategy in (tf.distribute.get_strategy(), mirrored())
        ]
    finally:
        keras.config.set_dtype_policy("float32")
    for expected, found in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-3)


def test_also_in_a_train_step_that_holds_its_losses() -> None:
    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = dense()
            self.dice = keras.losses.Dice()
            self.others = [keras.losses.BinaryCrossentropy(reduction="sum")]
            self.built = True

        def call(self, x: Any) -> Any:
            return self.dense(x)

        def train_step(self, data: Any) -> Any:
            x, y = data
            with tf.GradientTape() as tape:
                p = self(x)
                loss = self.dice(y, p) + 0.1 * self.others[0](y, p)
            grads = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply_gradients(zip(grads, self.trainable_variables, strict=True))
            return {"own": loss}

    same(Own, loss=lambda: "mse")


def test_the_cost_is_logged_once_and_not_for_losses_of_rows(caplog: Any) -> None:
    logging.getLogger("absl").propagate = True
    with mirrored().scope():
        keras.utils.set_random_seed(0)
        model = dense()

    def own_squares(y: Any, p: Any) -> Any:
        return tf.reduce_sum(tf.square(y - p), axis=-1)

    named = keras.losses.Dice(name="dice_of_all")
    with caplog.at_level(logging.WARNING, logger="absl"):
        for loss in (named, "mse", own_squares):
            with mirrored().scope():
                model.compile(keras.optimizers.SGD(0.1), loss)
            model.fit(*data(), batch_size=5, epochs=2, verbose=0)
    said = [r.getMessage() for r in caplog.records if r.getMessage().startswith("tfaccel: loss")]
    assert len(said) == 1
    assert "'dice_of_all'" in said[0]
    assert "24 bytes" in said[0]


def test_ragged_outputs_are_refused_in_one_line() -> None:
    class Ragged(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(1)
            self.dense.build((None, 5))
            self.built = True

        def call(self, x: Any) -> Any:
            return tf.RaggedTensor.from_row_lengths(
                self.dense(x), tf.ones(tf.shape(x)[0], tf.int64)
            )

    class Plain(keras.losses.Loss):
        def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
            return tf.reduce_mean(getattr(y_pred, "flat_values", y_pred))

    with mirrored().scope():
        model = Ragged()
        model.compile(keras.optimizers.SGD(0.1), Plain())
    with pytest.raises(StrategyError, match="RaggedTensor; expected dense") as raised:
        model.train_on_batch(*data())
    assert "\n" not in str(raised.value)


def test_replicas_that_train_alone_gather_nothing() -> None:
    strategy = tfaccel.strategy("mirrored", devices=2, device_type="cpu", local_steps=2)
    with strategy.scope():
        keras.utils.set_random_seed(3)
        model = dense()
        model.compile(keras.optimizers.SGD(0.1), keras.losses.Dice())
    x, y = data(8)
    one = dense()
    one.set_weights(model.get_weights())
    one.compile(keras.optimizers.SGD(0.1), keras.losses.Dice())
    whole = model.train_on_batch(x, y)
    parts = [one.test_on_batch(x[:4], y[:4]), one.test_on_batch(x[4:], y[4:])]
    np.testing.assert_allclose(whole, np.mean(parts), rtol=1e-5)


# add_loss


class Adds(keras.layers.Layer):
    def __init__(self, of: Any) -> None:
        super().__init__()
        self.of = of

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(shape=(5, 3), name="kernel")

    def call(self, x: Any) -> Any:
        self.add_loss(self.of(self, x))
        return x


ADDED: dict[str, Any] = {
    "rows": lambda _, x: 0.1 * tf.reduce_sum(tf.square(x), axis=1),
    "column": lambda _, x: 0.1 * tf.reduce_sum(tf.square(x), axis=1, keepdims=True),
    "mean": lambda _, x: tf.reduce_mean(tf.square(x)),
    "mean_of_each_feature": lambda _, x: 0.1 * tf.reduce_mean(tf.square(x), axis=0),
    "of_a_kernel": lambda self, _: 0.1 * tf.square(self.kernel),
}


@pytest.mark.parametrize("eagerly", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_add_loss_is_that_of_one_device(eagerly: bool) -> None:
    def make() -> keras.Model:
        wide = keras.layers.Dense(6, "tanh")
        added = [Adds(of) for of in ADDED.values()]
        return keras.Sequential([keras.Input((5,)), wide, *added, keras.layers.Dense(3)])

    same(make, loss=lambda: "mse", run_eagerly=eagerly)


def test_add_loss_of_rows_leaves_copies_out(monkeypatch: Any) -> None:
    monkeypatch.setattr(fit.KerasFit, "partial_batch", "pad")
    same(lambda: dense("tanh", Adds(ADDED["rows"])), loss=lambda: "mse")
