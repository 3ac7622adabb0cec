"""The first-step check with a fix taken out: it would have found what that fixes.

Each program passes as it is. Without the part of tfaccel that makes it right, the check names what
would differ. The headings are those of `tests/programs/kinds.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.distribute.test_first_step_check import (
    SGD,
    Own,
    X,
    Y,
    dense,
    fitted,
    mean_square,
    own,
    refuses,
)
from tfaccel.distribute import batch_sharding, batches, gradients, sparse, step

pytestmark = pytest.mark.child(devices=2, group="kinds")

RARE = pytest.mark.exhaustive


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Any], None]:
    """Takes a part of `tfaccel.distribute` out, and the check's search for another reduction."""

    def out(part: str, instead: Any) -> None:
        monkeypatch.setattr("tfaccel.distribute.first_step_check._MAX_TRIES", 1)
        monkeypatch.setattr(f"tfaccel.distribute.{part}", instead)

    return out


def stepping(step: Any, optimizer: Any = None, **compiled: Any) -> Any:
    """A model whose train step does `step(model, x, y)`."""

    class Steps(Own):
        def train_step(self, data: Any) -> Any:
            x, y = data
            return {"loss": step(self, x, y)}

    def made() -> keras.Model:
        model = Steps(mean_square)
        model.other = SGD(0.2, momentum=0.5)
        model.compile((optimizer or (lambda: SGD(0.1)))(), **compiled)
        return model

    return made


def passes_but_refuses(without: Any, part: str, instead: Any, made: Any, says: str) -> None:
    fitted(made)
    without(part, instead)
    refuses(made, says)


# 1. Losses that are about the global batch.


@RARE  # weights of rows are taken out below
def test_without_losses_of_the_whole_batch(without: Any) -> None:
    made = dense(loss=lambda y, p: keras.losses.mean_squared_error(y, p))
    fitted(made)
    summed = keras.losses.MeanSquaredError(reduction="sum")
    fitted(dense(loss=summed))
    without("fit.use_global_batch_losses", lambda model: None)
    refuses(dense(loss=keras.losses.MeanSquaredError(reduction="sum")), "gradient of")


def test_without_weights_by_rows(without: Any) -> None:
    without("gradients._weight", lambda ctx, reduction: None)
    refuses(dense(), "gradient of")


# 2. `add_loss` of one value per row.


@pytest.mark.parametrize("keepdims", [False, pytest.param(True, marks=RARE)])
def test_without_the_sum_of_added_losses_over_all_rows(keepdims: bool, without: Any) -> None:
    class Adds(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            self.add_loss(0.1 * tf.reduce_sum(tf.square(x), axis=1, keepdims=keepdims))
            return x

    part = "loss.AdditionalLoss._of_rows"
    passes_but_refuses(without, part, lambda *_: False, dense(Adds), "gradient of")


# 3. A `train_step` written for `tf.distribute`.


@pytest.mark.parametrize("way", ["global size", pytest.param("replicas", marks=RARE)])
def test_without_the_search_for_a_losss_reduction(way: str, without: Any) -> None:
    def of_loss(model: Any, x: Any, y: Any) -> Any:
        rows = tf.reduce_sum(tf.square(y - model(x)), axis=1)
        if way == "global size":
            return tf.nn.compute_average_loss(rows, global_batch_size=8)
        return tf.reduce_mean(rows) / tf.distribute.get_strategy().num_replicas_in_sync

    part = "first_step_check._next_reduction"
    passes_but_refuses(without, part, lambda *_: None, own(of_loss), "gradient of")


@pytest.mark.parametrize("way", ["all_gather", pytest.param("all_reduce", marks=RARE)])
def test_without_the_weight_of_what_replicas_gather(way: str, without: Any) -> None:
    """Rows of others have a gradient here, whose weight is that of the loss, not of the rows."""

    def of_loss(model: Any, x: Any, y: Any) -> Any:
        context = tf.distribute.get_replica_context()
        if way == "all_gather":
            out = context.all_gather(model(x), axis=0)
            return tf.reduce_mean(tf.square(out - tf.transpose(out)))
        rows = tf.cast(tf.shape(x)[0], tf.float32)
        total = tf.reduce_sum(tf.square(y - model(x)))
        return context.all_reduce("SUM", total) / context.all_reduce("SUM", rows)

    plain = gradients.all_reduce_gradients

    def weighted(grads: list[Any], owner: Any = None) -> Any:
        ctx = step.current()
        return plain([g if ctx is None else ctx.weight(g) for g in grads], owner)

    fitted(own(of_loss))
    without("gradients._weighted", lambda target, means, output_gradients, _: output_gradients)
    without("gradients.all_reduce_gradients", weighted)
    refuses(own(of_loss), "gradient of")


# 4. Gradients handled inside a `train_step`.


def clips(model: Any, x: Any, y: Any) -> Any:
    with tf.GradientTape() as tape:
        loss = mean_square(model, x, y)
    of = model.trainable_variables
    model.optimizer.apply([tf.clip_by_norm(g, 0.01) for g in tape.gradient(loss, of)], of)
    return loss


def centralises(model: Any, x: Any, y: Any) -> Any:
    with tf.GradientTape() as tape:
        loss = mean_square(model, x, y)
    of = model.trainable_variables
    grads = tape.gradient(loss, of)
    model.optimizer.apply([g - tf.reduce_mean(tf.abs(g)) for g in grads], of)
    return loss


def penalises(model: Any, x: Any, y: Any) -> Any:
    of = model.trainable_variables
    with tf.GradientTape() as outer:
        with tf.GradientTape() as tape:
            loss = mean_square(model, x, y)
        loss += tf.add_n([tf.reduce_sum(tf.square(g)) for g in tape.gradient(loss, of)])
    model.optimizer.apply(outer.gradient(loss, of), of)
    return loss


@pytest.mark.parametrize(
    "step", [pytest.param(clips, marks=RARE), centralises, pytest.param(penalises, marks=RARE)]
)
def test_without_the_gradients_of_the_tape(step: Any, without: Any) -> None:
    part = "fit.KerasFit._gradients"
    made = stepping(step)
    passes_but_refuses(without, part, lambda self: None, made, "gradient of|after a step")


def test_without_the_gradients_of_a_replicas_own_inputs(without: Any) -> None:
    """As in a WGAN-GP, whose penalty is on them."""

    def penalises_inputs(model: Any, x: Any, y: Any) -> Any:
        of, rows = model.trainable_variables, tf.cast(tf.shape(x)[0], tf.float32)
        with tf.GradientTape() as outer:
            with tf.GradientTape() as tape:
                tape.watch(x)
                loss = mean_square(model, x, y)
            _, of_x = tape.gradient(loss, [of, x])
            loss += tf.reduce_mean(tf.square(tf.norm(of_x * rows, axis=1) - 1))
        model.optimizer.apply(outer.gradient(loss, of), of)
        return loss

    made = stepping(penalises_inputs)
    passes_but_refuses(without, "gradients._divided", lambda g, weight: g, made, "gradient of")


@RARE  # below of a multi-optimizer
def test_without_what_the_tape_has_summed_for_a_second_optimizer(without: Any) -> None:
    def step(model: Any, x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = model.optimizer.scale_loss(mean_square(model, x, y))
        of = [layer.trainable_variables for layer in model.net.layers]
        first, second = tape.gradient(loss, of)
        model.optimizer.apply(first, of[0])
        model.other.apply(second, of[1])
        return loss

    def again(self: Any, grads: list[Any], variables: list[Any]) -> Any:
        return self.reduced(grads)

    part = "optimizer.ReduceFirst.global_batch_gradients"
    says = "variable '.*kernel' after a step"
    passes_but_refuses(without, part, again, stepping(step), says)


@pytest.mark.parametrize("scaled", [False, pytest.param(True, marks=RARE)])
def test_without_one_reduction_for_a_multi_optimizer(scaled: bool, without: Any) -> None:
    def several() -> Any:
        clipped = {".*kernel": SGD(0.02, clipnorm=0.1)}
        found = keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(SGD(0.1), clipped))
        scale = keras.optimizers.LossScaleOptimizer
        return scale(found, initial_scale=8.0) if scaled else found

    def made() -> keras.Model:
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1)])
        model.compile(several(), "mse")
        return model

    part = "optimizer._is_reduced"
    passes_but_refuses(without, part, step.on_one_device, made, "variable '.*' after a step")


# 5. Rows of an `Embedding` that come up more than once.


class Places(keras.layers.Layer):
    """Tokens and their places."""

    def build(self, shape: Any) -> None:
        self.tokens, self.places = keras.layers.Embedding(3, 3), keras.layers.Embedding(4, 3)
        self.tokens.build(shape)
        self.places.build(shape)

    def call(self, x: Any) -> Any:
        ids = tf.cast(x > 0, tf.int32) + tf.cast(x > 1, tf.int32)
        return self.tokens(ids) + self.places(tf.range(4))

    def compute_output_shape(self, shape: Any) -> Any:
        return (*shape, 3)


def embeds(optimizer: Any) -> Any:
    def made() -> keras.Model:
        layers = [Places(), keras.layers.Flatten(), keras.layers.Dense(1)]
        model = keras.Sequential([keras.Input((4,)), *layers])
        model.compile(optimizer(), "mse")
        return model

    return made


OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    "rmsprop": lambda: keras.optimizers.RMSprop(0.01),
    "clipnorm": lambda: SGD(0.1, clipnorm=0.02),
}
RARELY = [pytest.param(name, marks=RARE) for name in ("rmsprop", "clipnorm")]


@pytest.mark.parametrize("optimizer", ["adam", *RARELY])
def test_without_the_entries_of_one_device(optimizer: str, without: Any) -> None:
    """Such an optimizer squares each entry: one of all replicas, or one of each row."""
    plain = gradients._sum_over_replicas
    made, says = embeds(OPTIMIZERS[optimizer]), "variable '.*embeddings' after a step"

    def dense_sum(grads: list[Any], owner: Any) -> Any:
        return plain([None if g is None else tf.convert_to_tensor(g) for g in grads], owner)

    fitted(made)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse, "_same_on_all", lambda indices: False)
        refuses(made, says)
    without("gradients._sum_over_replicas", dense_sum)
    refuses(made, says)


# 6. State that layers and metrics keep: see also `test_first_step_check.py`.


def test_without_means_that_count_a_batch_once(without: Any) -> None:
    def made() -> keras.Model:
        def more(model: Any, x: Any, loss: Any) -> Any:
            model.told.update_state(loss)
            return {"told": model.told.result()}

        model = Own(mean_square, more)
        model.told = keras.metrics.Mean(name="told")
        model.compile(SGD(0.1))
        return model

    part = "metric_weights.WeightedScalar.update_state"
    says = "metric variable '.*told/total'"
    passes_but_refuses(without, part, keras.metrics.Mean.update_state, made, says)


# 8. Parts of a batch with different numbers of rows.


class SemiSupervised(Own):
    """Three rows without a label for each one that has one."""

    def train_step(self, data: Any) -> Any:
        (more, x), y = data[:2]
        with tf.GradientTape() as tape:
            loss = mean_square(self, x, y) + tf.reduce_mean(tf.square(self(more)))
        of = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, of), of)
        return {"loss": loss}


def semi_supervised() -> keras.Model:
    model = SemiSupervised(mean_square)
    model.compile(SGD(0.1))
    return model


MORE = np.random.default_rng(1).normal(size=(27, 4)).astype("float32")
PARTS = (MORE, X[:9]), Y[:9]


def test_without_parts_cut_in_proportion(without: Any) -> None:
    plain = batch_sharding.shard_batch

    def each_alone(batch: Any, placement: Any, sharding: Any) -> Any:
        leaves = [plain(leaf, placement, sharding) for leaf in tf.nest.flatten(batch)]
        replicas = zip(*(parts for parts, _, _ in leaves), strict=True)
        parts = tuple(tf.nest.pack_sequence_as(batch, each) for each in replicas)
        return parts, *leaves[-1][1:]

    fit: dict[str, Any] = {"x": tf.data.Dataset.from_tensors(PARTS), "y": None, "batch_size": None}
    fitted(semi_supervised, **fit)
    without("dataset_sharding.shard_batch", each_alone)
    refuses(semi_supervised, "gradient of", **fit)


def test_without_the_part_of_all_rows_that_a_replica_has(without: Any) -> None:
    plain = batches.exact_batch

    def equal(parts: Any, fractions: Any, *rest: Any) -> Any:
        return plain(parts, [tf.constant(1 / len(fractions)) for _ in fractions], *rest)

    fit: dict[str, Any] = {"x": X[:7], "y": Y[:7]}
    fitted(own(mean_square), **fit)
    without("batches.exact_batch", equal)
    says = "replica 0 would count for 0.5 of the batch; expected 0.571429, as it has 4 of 7 rows"
    refuses(own(mean_square), says, **fit)


# 9. Eager steps.


def test_without_attributes_of_each_eager_replica(without: Any) -> None:
    class Keeps(Own):
        last: Any = None

        def train_step(self, data: Any) -> Any:
            x, y = data
            with tf.GradientTape() as tape:
                self.last = self(x)
                loss = tf.reduce_mean(tf.square(self.last - y))
            of = self.trainable_variables
            self.optimizer.apply(tape.gradient(loss, of), of)
            return {"error": tf.reduce_mean(tf.abs(self.last - y))}

    def made() -> keras.Model:
        model = Keeps(mean_square)
        model.compile(SGD(0.1), run_eagerly=True)
        return model

    part = "replica_attributes.ReplicaAttributes.wrap"
    passes_but_refuses(without, part, lambda self, step: step, made, "log 'error'")
