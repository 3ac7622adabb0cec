"""Static batches: what fills them up changes no number."""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfaccel
from tfaccel.distribute.batch_sharding import Placement
from tfaccel.distribute.batches import Batches
from tfaccel.distribute.padding import pad
from tfaccel.errors import InputError

pytestmark = pytest.mark.child(devices=3)

ROWS = 23  # in batches of 6: five of the last one's rows are left, on three replicas
METRICS = ("mae", "mse", keras.metrics.RootMeanSquaredError, keras.metrics.R2Score)
CLASS_METRICS = (
    "accuracy",
    keras.metrics.AUC,
    keras.metrics.Precision,
    keras.metrics.F1Score,
    keras.metrics.CategoricalHinge,
    keras.metrics.TopKCategoricalAccuracy,
    functools.partial(keras.metrics.OneHotMeanIoU, 4),
)


def metric(one: Any) -> Any:
    return one if isinstance(one, str) else one()


def dense(out: int = 4) -> keras.Model:
    top = layers.Dense(out, "softmax") if out > 1 else layers.Dense(1)
    return keras.Sequential([keras.Input((5,)), layers.Dense(7, "relu"), top])


def masked() -> keras.Model:
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Embedding(9, 8, mask_zero=True)(tokens)
    x = layers.LSTM(8, return_sequences=True)(x)
    return keras.Model(tokens, layers.Dense(9)(x))


def two_outputs() -> keras.Model:
    x = keras.Input((5,))
    h = layers.Dense(6, "tanh", activity_regularizer=None)(x)
    return keras.Model(x, {"a": layers.Dense(1, name="a")(h), "b": layers.Dense(4, name="b")(h)})


class Sum(layers.Layer):
    def call(self, a: Any, b: Any = None) -> Any:
        return a if b is None else a + b


def optional() -> keras.Model:
    a, b = keras.Input((5,), name="a"), keras.Input((5,), name="b", optional=True)
    return keras.Model({"a": a, "b": b}, layers.Dense(4, "softmax")(Sum()(a, b)))


def images() -> keras.Model:
    x = keras.Input((5,))
    pixels = layers.Reshape((3, 3, 2))(layers.Dense(18)(x))
    return keras.Model(x, layers.Conv2D(2, 1, activation="sigmoid")(pixels))


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


X = rng().normal(size=(ROWS, 5)).astype("float32")
CLASSES = np.eye(4, dtype="float32")[rng().integers(0, 4, ROWS)]
TOKENS = rng().integers(0, 9, (ROWS, 6)).astype("int32")
WEIGHTS = rng().uniform(0.5, 2, ROWS).astype("float32")
MSE = keras.losses.MeanSquaredError
CROSSENTROPY = functools.partial(keras.losses.SparseCategoricalCrossentropy, from_logits=True)
TWO = {"a": X[:, :1], "b": CLASSES}

CASES: dict[str, tuple[Any, Any, Any, dict[str, Any], Any]] = {
    # name: model, x, y, what compile is given, sample weights
    "regression": (
        functools.partial(dense, 1),
        X,
        X[:, :1],
        {"loss": MSE, "metrics": METRICS},
        None,
    ),
    "classes": (
        dense,
        X,
        CLASSES,
        {"loss": "categorical_crossentropy", "metrics": CLASS_METRICS},
        None,
    ),
    "weights": (
        dense,
        X,
        CLASSES,
        {"loss": "categorical_crossentropy", "metrics": ["accuracy"], "weighted_metrics": ["mae"]},
        WEIGHTS,
    ),
    "sum": (
        functools.partial(dense, 1),
        X,
        X[:, :1],
        {"loss": functools.partial(MSE, reduction="sum")},
        None,
    ),
    "mean_with_sample_weight": (
        functools.partial(dense, 1),
        X,
        X[:, :1],
        {"loss": functools.partial(MSE, reduction="mean_with_sample_weight")},
        WEIGHTS,
    ),
    "masks": (
        masked,
        TOKENS,
        TOKENS,
        {"loss": CROSSENTROPY, "metrics": ["sparse_categorical_accuracy"]},
        None,
    ),
    "ignored_class": (
        masked,
        TOKENS,
        TOKENS,
        {"loss": functools.partial(CROSSENTROPY, ignore_class=3)},
        None,
    ),
    "two_outputs": (
        two_outputs,
        X,
        TWO,
        {
            "loss": {"a": "mse", "b": "categorical_hinge"},
            "metrics": {"a": ["mae"], "b": ["accuracy"]},
        },
        None,
    ),
    "not_given": (
        optional,
        {"a": X, "b": None},
        CLASSES,
        {"loss": "categorical_crossentropy", "metrics": ["accuracy"]},
        None,
    ),
    "pixels": (
        images,
        X,
        rng().uniform(size=(ROWS, 3, 3, 2)).round(),
        {"loss": "binary_crossentropy", "metrics": ["mae"]},
        None,
    ),
}

# "weights" and "masks" show the same, and more; tests/conformance has two outputs, and
# test_tpu_strategy.py fills up batches that hold None.
RARE = ("classes", "ignored_class", "mean_with_sample_weight", "pixels", "two_outputs", "not_given")


def first_rows(nest: Any) -> Any:
    return tf.nest.map_structure(lambda t: None if t is None else t[:4], nest)


def trained(case: str, strategy: tf.distribute.Strategy) -> dict[str, Any]:
    build, x, y, compiled, weights = CASES[case]
    keras.utils.set_random_seed(3)
    with strategy.scope():
        model = build()
        given = {
            k: [metric(m) for m in v] if isinstance(v, (list, tuple)) else v
            for k, v in compiled.items()
        }
        loss = given.pop("loss")
        loss = loss() if callable(loss) else loss
        model.compile(keras.optimizers.SGD(0.05), loss, **given)
    history = model.fit(x, y, 6, 2, 0, sample_weight=weights, shuffle=False).history
    # Keras counts the metrics it has made of a kind, and names them so.
    return {
        "history": list(history.values()),
        "evaluate": model.evaluate(x, y, 6, 0, sample_weight=weights),
        "predict": model.predict(x, 6, 0),
        "one": model.train_on_batch(first_rows(x), first_rows(y)),
        "weights": model.get_weights(),
    }


@functools.cache
def alone(case: str) -> dict[str, Any]:
    return trained(case, tf.distribute.get_strategy())


@functools.cache
def strategy(partial_batch: str = "pad") -> tf.distribute.Strategy:
    return tfaccel.strategy("mirrored", device_type="cpu", devices=3, partial_batch=partial_batch)


@pytest.mark.parametrize(
    ("case", "partial_batch"),
    [
        pytest.param(case, how, marks=() if always else pytest.mark.exhaustive)
        for how in ("pad", "exact")
        for case in CASES
        # The conformance table shows the same of batches that are not filled up.
        for always in [how == "pad" and case not in RARE]
    ],
)
def test_numbers_are_those_of_one_device(case: str, partial_batch: str) -> None:
    ours = trained(case, strategy(partial_batch))
    for what, expected in alone(case).items():
        tf.nest.map_structure(
            lambda a, b, what=what: np.testing.assert_allclose(a, b, 2e-5, 1e-6, err_msg=what),
            ours[what],
            expected,
        )


def shapes(partial_batch: str, method: str = "fit") -> list[tuple[int, ...]]:
    """The shape of each batch that a replica's step is traced or called with."""
    with strategy(partial_batch).scope():
        model = keras.Sequential([keras.Input((5,)), layers.Dense(1)])
        model.compile("sgd", "mse", run_eagerly=True)
    seen: list[tuple[int, ...]] = []
    call = model.call

    def watched(x: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(tuple(x.shape))
        return call(x, *args, **kwargs)

    model.call = watched
    getattr(model, method)(tf.data.Dataset.from_tensor_slices((X, X[:, :1])).batch(6), verbose=0)
    return [s for s in seen if s[0] is not None]


def test_every_batch_has_the_first_one_s_shape() -> None:
    assert shapes("pad")[-12:] == [(2, 5)] * 12


def test_a_ragged_batch_is_dropped_in_training_alone() -> None:
    assert shapes("drop")[-9:] == [(2, 5)] * 9
    assert shapes("drop", "evaluate")[-12:] == [(2, 5)] * 12


def test_validation_counts_every_row_where_training_drops_some() -> None:
    with strategy("drop").scope():
        model = keras.Sequential([keras.Input((5,)), layers.Dense(1)])
        model.compile("sgd", "mse")
    data = X[:8], X[:8, :1]  # of which batches of six leave two
    said = model.fit(*data, batch_size=6, validation_data=data, verbose=0).history
    assert said["val_loss"][0] == pytest.approx(model.evaluate(*data, batch_size=6, verbose=0))


def test_a_step_is_traced_once() -> None:
    traced = []

    class Counted(layers.Layer):
        def call(self, x: Any) -> Any:
            traced.append(x.shape)
            return x

    with strategy().scope():
        model = keras.Sequential([keras.Input((5,)), Counted(), layers.Dense(1)])
        model.compile("sgd", "mse")
    traced.clear()
    model.fit(X, X[:, :1], batch_size=6, epochs=2, verbose=0)
    assert [tuple(s) for s in traced if s[0] is not None] == [(2, 5)] * 3, "one for each replica"


def test_another_batch_size_is_another_static_shape() -> None:
    traced = []

    class Noted(layers.Layer):
        def call(self, x: Any) -> Any:
            traced.append(tuple(x.shape))
            return x

    with strategy().scope():
        model = keras.Sequential([keras.Input((5,)), Noted(), layers.Dense(1)])
        model.compile("sgd", "mse")
    traced.clear()
    for size in (6, 9, 12, 6):
        model.fit(X, X[:, :1], batch_size=size, verbose=0)
    assert [s for s in traced if s[0] is not None] == [(2, 5)] * 3 + [(3, 5)] * 3 + [(4, 5)] * 3


def test_dropping_needs_batches_that_divide() -> None:
    dataset = tf.data.Dataset.from_tensor_slices(X).batch(7)
    batches = Batches(dataset, Placement(1, 0, 3), ("CPU:0", "CPU:1", "CPU:2"), "drop")
    with pytest.raises(
        InputError, match="partial_batch='drop' was requested with batches of 7 rows on 3"
    ):
        next(iter(batches))


def test_a_larger_batch_is_not_refused() -> None:
    dataset = tf.data.Dataset.from_generator(
        lambda: (X[:n] for n in (3, 9, 4)), output_signature=tf.TensorSpec([None, 5])
    )
    batches = Batches(dataset, Placement(1, 0, 3), ("CPU:0", "CPU:1", "CPU:2"), "pad")
    found = [tuple(part.data.shape[0] for part in batch.values) for batch in batches]
    assert found == [(1, 1, 1), (3, 3, 3), (3, 3, 3)]


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (lambda: tf.constant(["a"]), "strings"),
        (lambda: tf.ragged.constant([[1], [2, 3]]), "RaggedTensor"),
    ],
)
def test_what_has_no_static_shape_is_refused(tensor: Any, kind: str) -> None:
    with pytest.raises(InputError, match=f"the batch holds {kind}; expected dense numbers"):
        pad((tensor(),), tf.constant(1.0), 4)
