"""Operations that DTensor lays out wrongly by itself, in a layer, next to one device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.model_parallel.test_training import assert_as_one_device, strategy
from tfaccel.distribute import _private

pytestmark = [pytest.mark.slow, pytest.mark.child(devices=4)]

_RNG = np.random.default_rng(0)
# The last batch is one row over; features of 8 are divided over the model axis.
X, Y = _RNG.normal(size=(17, 6)).astype("float32"), _RNG.normal(size=(17, 2)).astype("float32")
GRAPH = _RNG.normal(size=(13, 4, 6, 3)).astype("float32")


def _graph(t: Any) -> Any:
    """A graph's nodes before its rows, as in Keras's example of traffic forecasting."""
    shape = tf.shape(t)
    nodes = tf.reshape(t[:, None], (shape[0] * 2, 4))  # two of each row
    nodes = tf.transpose(tf.reshape(nodes, (-1, 2, 4)), [1, 0, 2])
    folded = tf.reshape(nodes, (2 * shape[0], 4)) * [1.0, 2.0, 3.0, 4.0]
    return tf.transpose(tf.reshape(folded, (2, -1, 4)), [1, 2, 0])


def _heads(t: Any) -> Any:
    """Features as attention takes them apart: two of four heads, before the rows."""
    return tf.transpose(tf.reshape(t, (-1, 2, 1, 4)), [1, 0, 2, 3])


def _places(t: Any) -> Any:
    return tf.tile(tf.constant([2, 0, 1, 7, 3, 3, 5, 6])[None], [tf.shape(t)[0], 1])


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "a new axis before features": lambda t: t[:, None],
    "a new axis before rows": lambda t: t[None][0],
    "new axes around an ellipsis": lambda t: t[:, None, ..., None],
    "a new axis and an index": lambda t: t[..., 0, None] * t[:, -1][:, None],
    "an index before rows": lambda t: _heads(t)[0] + _heads(t)[-1] * 0.5,
    "indices around rows": lambda t: tf.tile(_heads(t)[1, :, -1], [1, 2]) * t,
    "an index that is computed": lambda t: _heads(t)[tf.shape(t)[1] - 7] * _heads(t)[7 - 8],
    "chosen by a vector in rows": lambda t: t * tf.gather(t, _places(t), axis=1, batch_dims=1),
    "one row": lambda t: t * t[0][None],
    "rows in reverse": lambda t: t[::-1],
    "features in reverse": lambda t: t[:, ::-1] * t[:, -1:0:-2][:, :1],
    "split features": lambda t: tf.concat(tf.split(t, 2, -1)[::-1], -1),
    "unequal splits of features": lambda t: tf.split(t, [3, 5], 1)[1],
    "unstacked features": lambda t: tf.stack(tf.unstack(t, axis=1)[::-1], 1),
    "products of rows": lambda t: tf.nn.softmax(tf.matmul(t, t, transpose_b=True)) @ t,
    "einsum of rows": lambda t: tf.einsum("bi,ci->bc", t, t) @ t / 9.0,
    "a row before the others": lambda t: t + tf.pad(t, [[1, 0], [0, 0]])[:-1],
    "chosen by their places": lambda t: t * tf.math.top_k(t, 3)[0][:, 2:],
    "rows between others": _graph,
    "the diagonal of a matrix": lambda t: tf.linalg.set_diag(t[:, :, None] * t[:, None], t),
}
FEW = (  # the last one has new axes too
    "an index before rows",
    "rows in reverse",
    "products of rows",
    "rows between others",
)


class Between(keras.layers.Layer):
    """A function of features that are divided over the model axis."""

    def __init__(self, function: Callable[[Any], Any], apart: bool) -> None:
        super().__init__()
        self.function = keras.layers.Lambda(function) if apart else function
        self.before, self.after = keras.layers.Dense(8, "tanh"), keras.layers.Dense(2)
        self.flat = keras.layers.Flatten()

    def call(self, inputs: Any) -> Any:
        return self.after(self.flat(self.function(self.before(inputs))))


WHOLE = ("products of rows",)  # of these, called by a layer of its own too


@pytest.mark.parametrize(
    ("name", "apart"),
    [
        pytest.param(
            name,
            apart,
            id=f"{name}-{'whole' if apart else 'divided'}",
            marks=() if name in (WHOLE if apart else FEW) else pytest.mark.exhaustive,
        )
        for name in FUNCTIONS
        for apart in (False, True)
    ],
)
def test_is_that_of_one_device(name: str, apart: bool) -> None:
    def train(scope: Any) -> Any:
        with scope():
            inputs = keras.Input((6,))
            model = keras.Model(inputs, Between(FUNCTIONS[name], apart)(inputs))
            model.compile(keras.optimizers.SGD(0.05), "mse")
        predicted = model.predict(X, batch_size=8, verbose=0)
        loss = model.fit(X, Y, batch_size=8, verbose=0, shuffle=False).history["loss"]
        return [predicted, loss, model.get_weights()]

    assert_as_one_device(train, rtol=1e-4)


def test_features_of_four_dimensions_by_a_kernel_in_batches_of_several_sizes() -> None:
    """With oneDNN, what TensorFlow makes of `tf.matmul` here writes where it must not.

    That kills one device too, which therefore computes the same with `tf.einsum`.
    """

    def einsum(left: Any, right: Any) -> Any:
        return tf.einsum("abcd,de->abce", left, right)

    class Graph(keras.layers.Layer):
        def __init__(self, product: Any) -> None:
            super().__init__()
            self.product = product

        def build(self, shape: Any) -> None:
            self.kernel = self.add_weight(shape=(3, 16))
            self.back = self.add_weight(shape=(16, 3))

        def call(self, inputs: Any) -> Any:
            nodes = tf.transpose(inputs, [2, 0, 1, 3])
            nodes = self.product(tf.tanh(self.product(nodes, self.kernel)), self.back)
            return tf.transpose(nodes, [1, 2, 0, 3])

    def train(scope: Any) -> Any:
        with scope():
            inputs = keras.Input((4, 6, 3))
            product = einsum if scope is contextlib.nullcontext else tf.matmul
            model = keras.Model(inputs, Graph(product)(inputs))
            model.compile(keras.optimizers.SGD(0.1), "mse")
        losses = [model.evaluate(GRAPH, GRAPH, batch_size=n, verbose=0) for n in (5, 4, 3)]
        fitted = model.fit(GRAPH, GRAPH, batch_size=5, verbose=0, shuffle=False)
        return [losses, fitted.history["loss"], model.get_weights()]

    assert_as_one_device(train, rtol=1e-4)


OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "RMSprop": lambda: keras.optimizers.RMSprop(0.01),
    "RMSprop centered": lambda: keras.optimizers.RMSprop(0.01, centered=True, momentum=0.9),
    "Adagrad": lambda: keras.optimizers.Adagrad(0.1),
    "Adadelta": lambda: keras.optimizers.Adadelta(0.1),
    "Ftrl": lambda: keras.optimizers.Ftrl(0.1),
    "Nadam": lambda: keras.optimizers.Nadam(0.01),
    "RMSprop clipped": lambda: keras.optimizers.RMSprop(0.01, global_clipnorm=0.1),
    "RMSprop scaled": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.RMSprop(0.01)),
}


COMMON = ("Adadelta",)  # with two slots; tests/programs has words with RMSprop in every run


@pytest.mark.parametrize(
    "name",
    [n if n in COMMON else pytest.param(n, marks=pytest.mark.exhaustive) for n in OPTIMIZERS],
)
def test_optimizers_take_the_rows_of_an_embedding(name: str) -> None:
    """Ids that come twice in a batch, and places that each row has: one device's squares."""
    ids = np.random.default_rng(1).integers(0, 9, (20, 5))
    wanted = np.random.default_rng(2).normal(size=(20, 3)).astype("float32")

    class Places(keras.layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.table = keras.layers.Embedding(5, 4)

        def build(self, shape: Any) -> None:
            self.table.build(shape)

        def call(self, x: Any) -> Any:
            return x + self.table(keras.ops.arange(5))

    def train(scope: Any) -> Any:
        with scope():
            layers = [keras.layers.Embedding(10, 4), Places(), keras.layers.Flatten()]
            model = keras.Sequential([keras.Input((5,), dtype="int32"), *layers])
            model.add(keras.layers.Dense(3))
            model.compile(OPTIMIZERS[name](), "mse")
        fitted = model.fit(ids, wanted, batch_size=8, epochs=2, verbose=0, shuffle=False)
        return [fitted.history["loss"], model.get_weights()]

    assert_as_one_device(train)


def test_a_metric_that_decodes_what_ctc_trains() -> None:
    """And counts whole words, in integers."""

    class Words(keras.metrics.Metric):
        def __init__(self) -> None:
            super().__init__(name="words")
            self.right = self.add_weight(name="right", initializer="zeros", dtype="int32")

        def update_state(self, y: Any, p: Any, sample_weight: Any = None) -> None:
            rows, steps = tf.shape(p)[0], tf.shape(p)[1]
            lengths = tf.fill([rows], steps)
            (read,), _ = tf.nn.ctc_greedy_decoder(
                tf.transpose(p, [1, 0, 2]), lengths, blank_index=0
            )
            read = tf.sparse.to_dense(tf.sparse.reset_shape(read, [rows, steps]))
            wanted = tf.pad(tf.cast(y, read.dtype), [[0, 0], [0, steps - tf.shape(y)[1]]])
            same = tf.reduce_all(tf.equal(read, wanted), axis=1)
            self.right.assign_add(tf.reduce_sum(tf.cast(same, tf.int32)))

        def result(self) -> Any:
            return keras.ops.cast(self.right, "float32")

    y = np.random.default_rng(0).integers(1, 5, (21, 3))
    x = np.repeat(np.eye(5, dtype="float32")[y], 3, axis=1)

    def train(scope: Any) -> Any:
        with scope():
            layers = [keras.layers.Dense(16, "tanh"), keras.layers.Dense(5)]
            model = keras.Sequential([keras.Input((9, 5)), *layers])
            model.compile(keras.optimizers.SGD(0.5), keras.losses.CTC(), metrics=[Words()])
        history = model.fit(x, y, batch_size=8, epochs=6, shuffle=False, verbose=0).history
        return [history["loss"], history["words"], model.get_weights()]

    assert_as_one_device(train, rtol=1e-4)


RANDOM: dict[str, Callable[[Any], Any]] = {
    "normal": lambda t: t + tf.random.normal(tf.shape(t)),
    "normal with a seed": lambda t: t + tf.random.normal(tf.shape(t), 1.0, 2.0, seed=3),
    "truncated_normal": lambda t: t + tf.random.truncated_normal(tf.shape(t)),
    "uniform": lambda t: t + tf.random.uniform(tf.shape(t), 2.0, 3.0),
    "integers": lambda t: t + tf.cast(tf.random.uniform(tf.shape(t), 5, 90, tf.int32), t.dtype),
    "shuffle": lambda t: tf.random.shuffle(t + tf.cast(tf.range(tf.shape(t)[0]), t.dtype)[:, None]),
}
BETWEEN = {"uniform": (2, 3), "integers": (5, 89), "truncated_normal": (-2, 2), "shuffle": (0, 15)}


KINDS = ("normal with a seed", "shuffle")


@pytest.mark.parametrize(
    "name", [n if n in KINDS else pytest.param(n, marks=pytest.mark.exhaustive) for n in RANDOM]
)
def test_random_numbers_differ_by_row_and_step_and_come_again_with_their_seed(name: str) -> None:
    def drawn() -> tuple[Any, Any]:
        keras.utils.set_random_seed(5)
        keras.utils.clear_session()
        with strategy().scope():
            inputs = keras.Input((3,))
            model = keras.Model(inputs, keras.layers.Lambda(RANDOM[name])(inputs))
            model.compile(keras.optimizers.SGD(0.1), "mse")
        first, second = (model.predict(np.zeros((16, 3)), batch_size=16, verbose=0) for _ in "ab")
        assert len(np.unique(first, axis=0)) == 16
        assert np.any(first != second)
        return first, second

    first, again = drawn(), drawn()
    np.testing.assert_array_equal(first, again)
    least, most = BETWEEN.get(name, (-9, 9))
    assert least <= np.min(first)
    assert np.max(first) <= most
    if name == "shuffle":
        np.testing.assert_array_equal(np.sort(first[0][:, 0]), np.arange(16))


def test_one_instance_is_the_loss_of_several_outputs() -> None:
    def train(scope: Any) -> Any:
        with scope():
            inputs = keras.Input((6,))
            outputs = [keras.layers.Dense(2, name=name)(inputs) for name in "ab"]
            model = keras.Model(inputs, outputs)
            model.compile(keras.optimizers.SGD(0.1), keras.losses.MeanSquaredError())
        fitted = model.fit(X, [Y, Y], batch_size=8, verbose=0, shuffle=False)
        return [fitted.history["loss"], model.get_weights()]

    assert_as_one_device(train)


def test_a_grouped_convolution_is_called_on_the_host() -> None:
    def train(scope: Any) -> Any:
        with scope():
            layers = [keras.layers.Conv1D(4, 3, groups=2), keras.layers.BatchNormalization()]
            model = keras.Sequential([keras.Input((8, 4)), *layers])
            model.compile(keras.optimizers.SGD(0.1), "mse")
        x = np.random.default_rng(0).normal(size=(5, 8, 4)).astype("float32")
        called = [model(x), model(x, training=True), model(x)]
        loss = model.fit(x, np.ones((5, 6, 4)), verbose=0).history["loss"]
        return [[np.asarray(each) for each in called], loss, np.asarray(model(x))]

    assert_as_one_device(train, rtol=1e-4)


def test_layers_are_themselves_again_after_a_step() -> None:
    x = np.random.default_rng(0).integers(0, 9, (9, 5))

    def train(scope: Any) -> Any:
        with scope():
            rnn = keras.layers.SimpleRNN(4, return_sequences=True)
            layers = [keras.layers.Bidirectional(rnn), keras.layers.Conv1D(4, 2)]
            layers += [keras.layers.Flatten(), keras.layers.Dense(2, "tanh")]
            embedding = keras.layers.Embedding(9, 8, mask_zero=True)
            model = keras.Sequential([keras.Input((5,), dtype="int32"), embedding, *layers])
            loss = keras.losses.MeanSquaredError()
            model.compile(keras.optimizers.SGD(0.1), loss, metrics=[keras.metrics.R2Score()])
        parts = [model, loss, *_private.layers_of(model)]
        names = ("call", "compute_metrics", "activation", "unroll", "zero_output_for_mask")
        before = [{n: vars(part).get(n) for n in names} for part in parts]
        history = model.fit(x, Y[:9], batch_size=8, verbose=0, shuffle=False).history
        assert [{n: vars(part).get(n) for n in names} for part in parts] == before
        assert any(each["zero_output_for_mask"] for each in before)
        return [history["loss"], history["r2_score"], model.get_weights()]

    assert_as_one_device(train, rtol=1e-4)
