"""What a custom train step makes of its gradients, beside plain Keras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import pytest
import tensorflow as tf

from tests.distribute.watched import both_ways

pytestmark = pytest.mark.child(devices=2, group="gradients")

Gradients = Callable[[Any, Any, Any], Any]


class Own(keras.Model):
    """A linear model whose train step does `step(model, x, y)`."""

    def __init__(self, step: Any) -> None:
        super().__init__()
        self.first = keras.layers.Dense(3, use_bias=False)
        self.second = keras.layers.Dense(1)
        self.first.build((None, 4))
        self.second.build((None, 3))
        self.built = True
        self.of_step = step

    def call(self, x: Any) -> Any:
        return self.second(self.first(x))

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        return self.of_step(self, x, y) or {"nothing": tf.zeros([])}


def equal(step: Any, rows: int = 10, eager: bool = False, **options: Any) -> None:
    """Two steps leave what plain Keras leaves, and log what it logs."""

    def made() -> keras.Model:
        model = Own(step)
        model.compile(options.get("optimizer", lambda: keras.optimizers.SGD(0.1))())
        model.run_eagerly = eager
        model.other = keras.optimizers.SGD(0.2, momentum=0.5)
        return model

    both_ways(made, rows=rows, batch=5)


def mean_square(model: Any, x: Any, y: Any) -> Any:
    return tf.reduce_mean(tf.square(y - model(x)))


def clipped(model: Any, x: Any, y: Any) -> Any:
    with tf.GradientTape() as tape:
        loss = mean_square(model, x, y)
    of = model.trainable_variables
    grads = [tf.clip_by_norm(g - tf.reduce_mean(g), 0.05) for g in tape.gradient(loss, of)]
    model.optimizer.apply(grads, of)
    return {"loss": loss, "norm": tf.linalg.global_norm(grads)}


# Below it is compiled, with a replica that gets no row.
@pytest.mark.parametrize("eager", [pytest.param(False, marks=pytest.mark.exhaustive), True])
def test_clipped_and_centralised(eager: bool) -> None:
    equal(clipped, eager=eager)


@pytest.mark.exhaustive
def test_a_ragged_last_batch() -> None:
    equal(clipped, rows=8)


def test_a_batch_with_fewer_rows_than_replicas() -> None:
    equal(clipped, rows=6)


def test_a_scaled_loss_of_two_optimizers() -> None:
    def step(model: Any, x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = model.optimizer.scale_loss(mean_square(model, x, y))
        of = [model.first.trainable_variables, model.second.trainable_variables]
        first, second = tape.gradient(loss, of)
        model.optimizer.apply(first, of[0])
        model.other.apply(second, of[1])

    equal(step)


@pytest.mark.parametrize("rows", [8, pytest.param(10, marks=pytest.mark.exhaustive)])
def test_a_vector_of_losses_is_summed(rows: int) -> None:
    def step(model: Any, x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            losses = tf.reduce_sum(tf.square(y - model(x)), axis=1) / 10
        of = model.trainable_variables
        model.optimizer.apply(tape.gradient(losses, of), of)

    equal(step, rows=rows)


def test_a_penalty_on_gradients_of_inputs() -> None:
    def step(model: Any, x: Any, y: Any) -> Any:
        of = model.trainable_variables
        with tf.GradientTape() as outer:
            with tf.GradientTape() as tape:
                tape.watch(x)
                out = tf.square(model(x))
            grads = tape.gradient(out, x)
            loss = mean_square(model, x, y) + tf.reduce_mean(tf.square(tf.norm(grads, axis=1) - 1))
        model.optimizer.apply(outer.gradient(loss, of), of)
        return {"loss": loss}

    equal(step)


def test_a_penalty_on_gradients_of_variables() -> None:
    def step(model: Any, x: Any, y: Any) -> Any:
        of = model.trainable_variables
        with tf.GradientTape() as outer:
            with tf.GradientTape() as tape:
                loss = mean_square(model, x, y)
            grads = tape.gradient(loss, of)
            total = loss + 0.1 * tf.add_n([tf.reduce_sum(tf.square(g)) for g in grads])
        model.optimizer.apply(outer.gradient(total, of), of)
        return {"total": total}

    equal(step, rows=8)


@pytest.mark.exhaustive
def test_gradients_of_inputs_and_variables_at_once() -> None:
    def step(model: Any, x: Any, y: Any) -> Any:
        of = model.trainable_variables
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = mean_square(model, x, y)
        grads, of_x = tape.gradient(loss, [of, x])
        model.optimizer.apply(grads, of)
        rows = tf.cast(tf.shape(x)[0], tf.float32)
        return {"of_x": tf.reduce_mean(tf.reduce_sum(tf.abs(of_x * rows), axis=1))}

    equal(step, rows=8)


@pytest.mark.exhaustive
def test_what_is_computed_again_on_the_way_back() -> None:
    def step(model: Any, x: Any, y: Any) -> Any:
        of = model.trainable_variables
        hidden = tf.recompute_grad(model.first)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(y - model.second(hidden(x))))
        model.optimizer.apply(tape.gradient(loss, of), of)
        return {"loss": loss}

    equal(step, rows=8)


def test_gradients_made_by_hand_are_reduced_by_apply() -> None:
    def step(model: Any, x: Any, y: Any) -> Any:
        of = model.trainable_variables
        rows = tf.reduce_mean(x, axis=0)
        grads = [rows[:, None] * tf.ones_like(of[0]), *(0.5 * tf.ones_like(v) for v in of[1:])]
        model.optimizer.apply(grads, of)

    equal(step, rows=8)


def test_a_jacobian_is_the_replicas_own() -> None:
    def step(model: Any, x: Any, y: Any) -> Any:
        kernel = model.first.kernel
        with tf.GradientTape() as tape:
            out = tf.reduce_mean(model.first(x), axis=0)
        slopes = tape.jacobian(out, kernel.value)
        return {"slopes": tf.reduce_sum(slopes * tf.range(3.0)[:, None, None])}

    equal(step, rows=8)


@pytest.mark.parametrize("scaled", [pytest.param(False, marks=pytest.mark.exhaustive), True])
def test_a_multi_optimizer_reduces_once(scaled: bool) -> None:
    def optimizer() -> Any:
        sgd = keras.optimizers.SGD
        several = keras.optimizers.MultiOptimizer(
            keras.optimizers.OptimizerMap(sgd(0.1), {".*kernel": sgd(0.02, clipnorm=0.1)})
        )
        scale = keras.optimizers.LossScaleOptimizer
        return scale(several, initial_scale=8.0) if scaled else several

    def made() -> keras.Model:
        layers = [keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1)]
        model = keras.Sequential(layers)
        model.compile(optimizer(), "mse")
        return model

    both_ways(made, rows=8, batch=5)


def test_a_multi_optimizer_that_finds_its_parts_when_it_is_built() -> None:
    def made() -> keras.Model:
        parts = [keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.02)]
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        choose = lambda variable: parts["kernel" in variable.path]  # noqa: E731
        model.compile(keras.optimizers.MultiOptimizer(choose), "mse")
        return model

    both_ways(made, rows=8, batch=5)


def test_a_mean_updated_with_one_number_counts_a_batch_once() -> None:
    def step(model: Any, x: Any, y: Any) -> Any:
        if not hasattr(model, "told"):
            return None
        model.told.update_state(mean_square(model, x, y))
        return {"told": model.told.result()}

    def made() -> keras.Model:
        model = Own(step)
        model.told = keras.metrics.Mean(name="told")
        model.compile(keras.optimizers.SGD(0.1))
        return model

    both_ways(made, rows=8, batch=5)


@pytest.mark.parametrize(
    "reduction", [None, "sum", pytest.param("sum_over_batch_size", marks=pytest.mark.exhaustive)]
)
def test_reductions_of_a_compiled_loss(reduction: str | None) -> None:
    def made() -> keras.Model:
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        loss = keras.losses.MeanSquaredError(reduction=reduction)
        model.compile(keras.optimizers.SGD(0.01), loss)
        return model

    both_ways(made, rows=8, batch=5, logs=reduction is not None)


@pytest.mark.parametrize(
    ("collective", "eager"),
    [
        pytest.param("int", False, marks=pytest.mark.exhaustive),
        ("bool", False),
        ("nest", False),
        pytest.param("nest", True, marks=pytest.mark.exhaustive),
        ("sum", False),
    ],
)
def test_collectives_by_hand(collective: str, eager: bool) -> None:
    def step(model: Any, x: Any, y: Any) -> Any:
        context = tf.distribute.get_replica_context()
        of = model.trainable_variables
        with tf.GradientTape() as tape:
            out = model(x)
            if collective == "int":
                said = context.all_gather(tf.cast(x * 10, tf.int8), axis=0)
            elif collective == "bool":
                said = context.all_gather(x > 0, axis=0)
            elif collective == "nest":
                said = x
                if context.num_replicas_in_sync > 1:  # of one, TensorFlow's gradient is an error
                    said, out = context.all_gather([x, out], axis=0)
                    y = context.all_gather(y, axis=0)
            else:
                said = context.all_reduce("SUM", tf.reduce_sum(x, axis=0))
            more = tf.reduce_sum(tf.cast(said, tf.float32))
            loss = tf.reduce_mean(tf.square(y - out)) * (1 + 0.01 * more)
        model.optimizer.apply(tape.gradient(loss, of), of)
        return {"loss": loss}

    equal(step, rows=8, eager=eager)


def test_the_users_code_sees_all_replicas_and_keras_one() -> None:
    seen = []

    def step(model: Any, x: Any, y: Any) -> Any:
        strategy = tf.distribute.get_strategy()
        context = tf.distribute.get_replica_context()
        seen.append((strategy.num_replicas_in_sync, context.num_replicas_in_sync))
        # TensorFlow requests the number of replicas, and divides by it.
        return {"loss": tf.nn.compute_average_loss(tf.reduce_mean(tf.square(y - model(x)), axis=1))}

    equal(step, rows=8)
    assert seen[0] == (1, 1)
    assert seen[-1] == (2, 2)


def lookups(optimizer: Any, embed: Any) -> Callable[[], keras.Model]:
    def made() -> keras.Model:
        inputs = keras.Input((5,), dtype="int32")
        model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(embed(inputs))))
        model.compile(optimizer(), "mse")
        return model

    return made


@keras.saving.register_keras_serializable("tests")
class Places(keras.layers.Layer):
    """Token ids, and positions made in one of several ways; maybe of the same table."""

    def __init__(self, kind: str, tied: bool) -> None:
        super().__init__()
        self.kind, self.tokens = kind, keras.layers.Embedding(8, 3)
        self.places = self.tokens if tied else keras.layers.Embedding(5, 3)

    def build(self, shape: Any) -> None:
        self.tokens.build(shape)
        if not self.places.built:
            self.places.build(shape)

    def call(self, x: Any) -> Any:
        if self.kind == "constant":
            places = keras.ops.arange(5)
        elif self.kind == "size":
            places = tf.range(tf.shape(x)[1])
        else:  # for each row
            places = tf.tile(tf.range(5)[None], [tf.shape(x)[0], 1])
        return self.tokens(x) + self.places(places)

    def compute_output_shape(self, shape: Any) -> Any:
        return (*shape, 3)


@pytest.mark.parametrize(
    ("optimizer", "kind", "tied"),
    [
        (keras.optimizers.Adam, "constant", False),
        pytest.param(keras.optimizers.Adam, "constant", True, marks=pytest.mark.exhaustive),
        pytest.param(keras.optimizers.Adam, "size", True, marks=pytest.mark.exhaustive),
        pytest.param(keras.optimizers.Adam, "rows", False, marks=pytest.mark.exhaustive),
        (keras.optimizers.RMSprop, "rows", True),
        pytest.param(keras.optimizers.RMSprop, "constant", False, marks=pytest.mark.exhaustive),
        pytest.param(keras.optimizers.Adagrad, "size", False, marks=pytest.mark.exhaustive),
    ],
)
def test_lookups_have_the_entries_of_one_device(optimizer: Any, kind: str, tied: bool) -> None:
    made = lookups(lambda: optimizer(0.01), lambda x: Places(kind, tied)(x))
    both_ways(made, rows=16, batch=8, tokens=8, slots="velocity")


def test_lookups_eagerly() -> None:
    def made() -> keras.Model:
        embed = lambda x: Places("constant", False)(x)  # noqa: E731
        model = lookups(lambda: keras.optimizers.Adam(0.01), embed)()
        model.run_eagerly = True
        return model

    both_ways(made, rows=16, batch=8, tokens=8, slots="velocity")


@pytest.mark.parametrize(
    "clip", [pytest.param("clipnorm", marks=pytest.mark.exhaustive), "global_clipnorm"]
)
def test_lookups_are_clipped_as_on_one_device(clip: str) -> None:
    optimizer = lambda: keras.optimizers.SGD(0.1, **{clip: 0.02})  # noqa: E731
    made = lookups(optimizer, lambda x: Places("constant", False)(x))
    both_ways(made, rows=16, batch=8, tokens=8)
