"""State of a user's own layers and metrics, under uneven shares against one device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.distribute.watched import mirrored
from tfaccel.distribute.state_aggregation import matching_aggregations, preferred
from tfaccel.distribute.stateful_layers import _aggregations

pytestmark = pytest.mark.child(devices=2, group="pair")

ops = keras.ops
FIRST_REPLICA = "only_first_replica"
ROWS = 11  # in batches of 5: shares of 3 and 2, and at the end of 1 and 0


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(ROWS, 4)).astype("float32"), rng.normal(size=(ROWS, 3)).astype(
        "float32"
    )


class Keeps(keras.layers.Layer):
    """Keeps one state, which `update` makes of the old one and of its inputs."""

    def __init__(self, update: Any, shape: Any = (4,), *, reads: bool = False, **how: Any) -> None:
        super().__init__()
        self.update, self.reads = update, reads
        more = {"initializer": "zeros", "trainable": False, "dtype": "float32", "name": "kept"}
        self.kept = self.add_weight(shape=shape, **{**more, **how})

    def call(self, x: Any, training: bool = False) -> Any:
        before = self.kept + 0
        if training:
            self.kept.assign(ops.cast(self.update(self.kept, x), self.kept.dtype))
        return x + 0.1 * ops.sum(ops.cast(self.kept if self.reads else before, x.dtype))


UPDATES: dict[str, Any] = {
    "steps": (lambda s, x: s + 1, ()),
    "rows": (lambda s, x: s + ops.cast(ops.shape(x)[0], s.dtype), ()),
    "sums": (lambda s, x: s + ops.sum(x, 0), (4,)),
    "largest": (lambda s, x: ops.maximum(s, ops.max(x, 0)), (4,)),
    "least": (lambda s, x: ops.minimum(s, ops.min(x, 0)), (4,)),
    "moving_mean": (lambda s, x: 0.9 * s + 0.1 * ops.mean(x, 0), (4,)),
    "moving_sum": (lambda s, x: 0.9 * s + 0.1 * ops.sum(x, 0), (4,)),
    "newest": (lambda s, x: ops.concatenate([x, s], 0)[:6], (6, 4)),
    "last_batch_s_spread": (lambda s, x: ops.std(x, 0), (4,)),
}


def trained(scope: Any, make: Any, rows: int = ROWS, **more: Any) -> Any:
    """All that a model of the layers that `make` makes says and holds."""
    keras.utils.set_random_seed(3)
    with scope.scope():
        x = keras.Input((4,))
        h = keras.layers.Dense(4, "tanh")(x)
        layers = make()
        mean = sum(layer(h) for layer in layers) / len(layers)
        model = keras.Model(x, keras.layers.Dense(3)(mean))
        metrics = more.pop("metrics", list)()
        model.compile(keras.optimizers.SGD(0.01), "mse", metrics=metrics, **more)
    if scope is not mirrored():  # as a strategy does; else the step would be traced twice
        model.optimizer.build(model.trainable_variables)
    x_of, y_of = (part[:rows] for part in data())
    given = {"x": x_of, "y": y_of, "batch_size": 5, "verbose": 0}
    fitted = model.fit(**given, epochs=2, shuffle=False)
    tested = model.evaluate(**given, return_dict=True)
    plain = [layer.plain for layer in model.layers if hasattr(layer, "plain")]
    for variable in [*(v.value for v in model.variables), *plain]:
        on_read = variable.synchronization == tf.VariableSynchronization.ON_READ
        copies = [] if on_read else [c.numpy() for c in getattr(variable, "values", ())]
        assert all(np.array_equal(copies[0], copy) for copy in copies), variable.name
    found = {**{k: np.asarray(v) for k, v in fitted.history.items()}, "tested": tested}
    named = {v.path: v.numpy() for v in model.weights}
    return found, named, {v.name: v.numpy() for v in plain}


def same(make: Any, **more: Any) -> None:
    """Trains on two replicas and on one device."""
    one, two = (trained(s, make, **more) for s in (tf.distribute.get_strategy(), mirrored()))
    for expected, found in zip(one, two, strict=True):
        assert len(expected) == len(found)
        # Layers are numbered anew in the second model.
        for (name, a), b in zip(expected.items(), found.values(), strict=True):
            a, b = (list(v.values()) if isinstance(v, dict) else v for v in (a, b))
            np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5, err_msg=name)


def of_all_kinds(kinds: Iterable[str] = UPDATES, **how: Any) -> list[Any]:
    return [Keeps(*UPDATES[update], **how) for update in kinds]


def test_a_layer_s_state_is_that_of_one_device() -> None:
    same(of_all_kinds)


@pytest.mark.parametrize(
    "kinds",
    [
        ("sums", "largest", "moving_mean", "newest"),
        pytest.param(tuple(UPDATES), marks=pytest.mark.exhaustive),
    ],
)
def test_also_when_a_layer_reads_what_it_has_just_written(kinds: tuple[str, ...]) -> None:
    same(lambda: of_all_kinds(kinds, reads=True))


def test_also_eagerly() -> None:
    some = ("rows", "largest", "newest")
    same(lambda: [Keeps(*UPDATES[update]) for update in some], rows=9, run_eagerly=True)


class KeepsAlways(Keeps):
    """In `predict` too."""

    def call(self, x: Any, training: bool = False) -> Any:
        return super().call(x, training=True)


def predicted(scope: Any, compiles: bool, eager: bool) -> tuple[Any, list[Any]]:
    keras.utils.set_random_seed(3)
    with scope.scope():
        x = keras.Input((4,))
        layers = [KeepsAlways(*UPDATES[update]) for update in UPDATES]
        model = keras.Model(x, sum(layer(x) for layer in layers) / len(layers))
        if compiles:
            model.compile("sgd", "mse", run_eagerly=eager)
    found = [model.predict(data()[0], batch_size=5, verbose=0) for _ in range(2)]
    if scope is mirrored():
        assert not scope.checks.reductions(model, "predict").all_rows, "each replica has its rows"
    return found, [layer.kept.numpy() for layer in layers]


@pytest.mark.parametrize(
    ("compiles", "eager"),
    [
        pytest.param(False, False, marks=pytest.mark.exhaustive),
        (True, False),
        pytest.param(True, True, marks=pytest.mark.exhaustive),
    ],
)
def test_a_state_that_changes_in_predict(compiles: bool, eager: bool) -> None:
    one, two = (predicted(s, compiles, eager) for s in (tf.distribute.get_strategy(), mirrored()))
    for expected, found in zip(one, two, strict=True):
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)


class Counts(keras.layers.Layer):
    """Counts rows in a TensorFlow variable."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = tf.Variable(0, trainable=False)

    def call(self, x: Any, training: bool = False) -> Any:
        if training:
            self.plain.assign_add(tf.shape(x)[0])
        return x * tf.cast(self.plain, x.dtype) / 10


class Always(keras.layers.Layer):
    """Counts in evaluation too, and is called twice in a step."""

    def __init__(self) -> None:
        super().__init__()
        own = {"shape": (), "initializer": "zeros", "trainable": False}
        self.rows = self.add_weight(dtype="int32", name="rows", **own)
        self.mean = self.add_weight(name="mean", **own)

    def call(self, x: Any) -> Any:
        return self._call(self._call(x))

    def _call(self, x: Any) -> Any:
        self.rows.assign_add(ops.shape(x)[0])
        self.mean.assign_add(0.1 * (ops.mean(x) - self.mean))
        return x + 0.01 * ops.cast(self.rows, x.dtype)


class Made(Keeps):
    """Makes its variable by itself."""

    def __init__(self, update: str, **how: Any) -> None:
        super().__init__(*UPDATES[update])
        value = np.zeros(UPDATES[update][1], "float32")
        self.kept = keras.Variable(value, trainable=False, name=f"{update}_{self.name}", **how)


WHOLE = [(update, how) for update in ("steps", "rows") for how in ("none", "sum", FIRST_REPLICA)]


@pytest.mark.parametrize(
    "pairs",
    [
        (("steps", FIRST_REPLICA), ("rows", "none"), ("rows", "sum")),
        pytest.param(tuple(WHOLE), marks=pytest.mark.exhaustive),
    ],
    ids=["some", "all"],
)
def test_also_of_integers_and_variables_of_any_make(pairs: tuple[tuple[str, str], ...]) -> None:
    def make() -> list[Any]:
        whole = [
            Keeps(*UPDATES[update], dtype="int32", aggregation=aggregation)
            for update, aggregation in pairs
        ]
        return [*whole, Counts(), Always()]

    same(make)


HOWS = {
    "sum on_read": "sums",
    "sum auto": "steps",
    "mean on_write": "sums",
    "mean on_read": "moving_mean",
    "none on_read": "steps",
    "only_first_replica on_read": "moving_mean",
}
ANY = ("steps", "sums", "moving_mean")


@pytest.mark.parametrize(
    "pairs",
    [
        tuple(HOWS.items()),
        pytest.param(
            tuple((how, update) for update in ANY for how in HOWS), marks=pytest.mark.exhaustive
        ),
    ],
    ids=["each once", "all"],
)
def test_whatever_num_replicas_in_sync_is(pairs: tuple[tuple[str, str], ...]) -> None:
    def make() -> list[Any]:
        return [
            Made(update, aggregation=how.split()[0], synchronization=how.split()[1])
            for how, update in pairs
        ]

    same(make)


def test_also_of_a_model_that_counts() -> None:
    class Counting(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(3)
            self.seen = self.add_weight(
                shape=(), dtype="int32", initializer="zeros", trainable=False, name="seen"
            )

        def call(self, x: Any, training: bool = False) -> Any:
            if training:
                self.seen.assign_add(ops.shape(x)[0])
            return self.dense(x)

    with mirrored().scope():
        model = Counting()
        model.build((None, 4))
        model.compile("sgd", "mse")
    model.fit(*data(), batch_size=5, epochs=2, verbose=0)
    copies = [int(v.numpy()) for v in mirrored().experimental_local_results(model.seen.value)]
    assert copies == [2 * ROWS] * 2


def test_keras_s_own_layers_are_not_tried() -> None:
    with mirrored().scope():
        norm = keras.layers.BatchNormalization()
        model = keras.Sequential([keras.Input((4,)), norm, keras.layers.Dense(3)])
        model.compile("sgd", "mse", metrics=["mae"])
    model.fit(*data(), batch_size=5, verbose=0)
    assert type(norm) is norm.__class__
    assert all(type(m) is m.__class__ for m in model.metrics if m.name == "mae")


# Metrics


class KeepsMetric(keras.metrics.Metric):
    def __init__(self, name: str, update: Any, initial: float = 0.0, **how: Any) -> None:
        super().__init__(name=name)
        self.update, self.initial = update, initial
        self.kept = self.add_variable((), keras.initializers.Constant(initial), name="kept", **how)
        self.inner = keras.metrics.Mean()

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.kept.assign(self.update(self.kept, y_pred))
        self.inner.update_state(y_pred)

    def result(self) -> Any:
        return self.kept + self.inner.result()

    def reset_state(self) -> None:
        self.kept.assign(self.initial)
        self.inner.reset_state()


METRICS: dict[str, Any] = {
    "largest": (lambda s, p: ops.maximum(s, ops.max(p)), -7.0),
    "last": (lambda s, p: ops.mean(p), 0.0),
    "moving": (lambda s, p: 0.9 * s + 0.1 * ops.mean(p), 0.0),
    "steps": (lambda s, p: s + 1, 0.0),
    "sum": (lambda s, p: s + ops.sum(p), 0.0),
    "median": (lambda s, p: ops.median(p), 0.0),
}


@pytest.mark.parametrize(
    ("kinds", "eagerly"),
    [
        # A maximum, a mean of rows, a sum, and what is made of all rows.
        (("largest", "moving", "sum", "median"), False),
        pytest.param(tuple(METRICS), False, marks=pytest.mark.exhaustive),
        pytest.param(tuple(METRICS), True, marks=pytest.mark.exhaustive),
    ],
)
def test_a_metric_is_that_of_one_device(kinds: tuple[str, ...], eagerly: bool) -> None:
    def metrics() -> list[Any]:
        return [*(KeepsMetric(name, *METRICS[name]) for name in kinds), "mae"]

    same(lambda: [keras.layers.Identity()], metrics=metrics, rows=9, run_eagerly=eagerly)


def test_also_of_other_aggregations() -> None:
    def metrics() -> list[Any]:
        ways = ("mean", "none", "only_first_replica")
        return [*(KeepsMetric(way, *METRICS["moving"], aggregation=way) for way in ways), "mae"]

    same(lambda: [keras.layers.Identity()], metrics=metrics)


# Rules


def test_rules_of_what_was_seen() -> None:
    shares = [0.6, 0.4]
    assert matching_aggregations(1, [2, 2], 2, shares) >= {"identical"}
    assert preferred(matching_aggregations(1, [2, 2], 2, shares)) == "identical"
    assert matching_aggregations(5, [8, 7], 10, shares) == {"sum"}
    assert matching_aggregations(0.0, [1.0, 2.0], 1.4, shares) == {"weighted_mean"}
    assert matching_aggregations(0.0, [1.0, -2.0], 1.0, shares) == {"maximum"}
    assert matching_aggregations(0.0, [1.0, -2.0], -2.0, shares) == {"minimum"}
    assert matching_aggregations(0.0, [1.0, 2.0], 5.0, shares) == set()
    assert (
        len(matching_aggregations(3.0, [3.0, 3.0], 3.0, shares)) == 5
    )  # nothing changed: all of them
    assert preferred(set()) is None


def test_a_trial_leaves_nothing_behind() -> None:
    with mirrored().scope():
        layer = Keeps(*UPDATES["largest"])
        layer.plain = tf.Variable(5, trainable=False)

    def update(state: Any, x: Any) -> Any:
        layer.plain.assign_add(tf.shape(x)[0])
        return UPDATES["largest"][0](state, x)

    layer.update = update
    with tf.Graph().as_default():
        x = tf.compat.v1.placeholder(tf.float32, (None, 4))
        here: Any = type("Here", (), {"rows": None})
        assert _aggregations(layer, (x,), {"training": True}, here) == ["maximum", "sum"]
    assert [int(v.numpy()) for v in layer.plain.values] == [5, 5]
    assert np.array_equal(layer.kept.numpy(), np.zeros(4))
