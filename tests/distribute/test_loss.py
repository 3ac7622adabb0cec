"""Losses and steps under uneven shares against one device, to rounding."""

from __future__ import annotations

import contextlib
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.distribute.watched import mirrored
from tfaccel.distribute import step
from tfaccel.distribute.loss import GlobalBatchLoss
from tfaccel.distribute.metric_weights import TracksOutputLoss
from tfaccel.distribute.mixins import mix_in

pytestmark = pytest.mark.child(devices=2, group="pair")

ROWS, TIME = 7, 4


def tokens() -> Any:
    rng = np.random.default_rng(0)
    x = rng.integers(1, 6, (ROWS, TIME))
    x[np.arange(TIME)[None] >= np.array([4, 1, 2, 1, 4, 4, 3])[:, None]] = 0
    return x, rng.integers(0, 3, (ROWS, TIME))


def weights(rows: int = ROWS) -> np.ndarray:
    return np.linspace(0.0, 3.0, rows).astype("float32")


def tagger(loss: Any, mask: bool = True, **more: Any) -> keras.Model:
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [keras.Input((TIME,)), keras.layers.Embedding(6, 4, mask_zero=mask), keras.layers.Dense(3)]
    )
    model.compile(keras.optimizers.SGD(0.5), loss() if callable(loss) else loss, **more)
    return model


def crossentropy(reduction: str) -> Any:
    return lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)


def trained(scope: Any, loss: Any, weight: Any, rows: int, **more: Any) -> list[np.ndarray]:
    with scope.scope():
        model = tagger(loss, **more)
    x, y = tokens()
    weight = None if weight is None else weight[:rows]
    logs = [model.train_on_batch(x[:rows], y[:rows], sample_weight=weight) for _ in range(2)]
    return [np.asarray(logs), *model.get_weights()]


REDUCTIONS = ["sum_over_batch_size", "sum", "mean_with_sample_weight"]


WAYS = [
    # Masked, weighted, and of how many rows.
    (False, "unweighted", 7),
    (False, "by_token", 7),
    (True, "unweighted", 7),
    (True, "by_row", 7),
    (True, "by_token", 7),
    (True, "by_token", 1),
]


# Of one reduction all ways, and of each the last two.
@pytest.mark.parametrize(
    ("reduction", "mask", "weight", "rows"),
    [
        (reduction, *way)
        if way in WAYS[-2:] or reduction == REDUCTIONS[0]
        else pytest.param(reduction, *way, marks=pytest.mark.exhaustive)
        for reduction in REDUCTIONS
        for way in WAYS
    ],
)
def test_loss_is_that_of_one_device(reduction: str, mask: bool, weight: str, rows: int) -> None:
    given = {
        "unweighted": None,
        "by_row": weights()[:, None] + 0.1,
        "by_token": weights(ROWS * TIME).reshape(ROWS, TIME) + 0.1,
    }[weight]
    one, two = (
        trained(scope, crossentropy(reduction), given, rows, mask=mask)
        for scope in (tf.distribute.get_strategy(), mirrored())
    )
    for expected, found in zip(one, two, strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


def test_a_replica_whose_rows_are_all_masked_or_weightless_counts_nothing() -> None:
    given = np.array([1, 2, 3, 4, 0, 0, 0], "float32")[:, None]
    for reduction in REDUCTIONS:
        one, two = (
            trained(scope, crossentropy(reduction), given, ROWS)
            for scope in (tf.distribute.get_strategy(), mirrored())
        )
        for expected, found in zip(one, two, strict=True):
            np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6, err_msg=reduction)


def test_outside_a_step_an_adapted_loss_is_a_plain_one() -> None:
    loss = keras.losses.MeanSquaredError(reduction="sum")
    mix_in(loss, GlobalBatchLoss)
    assert float(loss(tf.ones((4, 1)), tf.zeros((4, 1)))) == 4.0


def test_a_sum_is_divided_by_the_batch_fraction_so_that_weighting_restores_it() -> None:
    loss = keras.losses.MeanSquaredError(reduction="sum")
    mix_in(loss, GlobalBatchLoss)
    with step.entered(step.StepContext(tf.constant(0.25))) as here:
        value = loss(tf.ones((4, 1)), tf.zeros((4, 1)))
        assert float(value) == 16.0
        assert float(here.weight(value)) == 4.0


def test_a_tracker_counts_a_batch_once() -> None:
    mean = keras.metrics.Mean()
    mix_in(mean, TracksOutputLoss)
    for share, value in ((0.75, 4.0), (0.25, 8.0)):
        with step.entered(step.StepContext(tf.constant(share))):
            mean.update_state(value)
    assert float(mean.result()) == 5.0
    assert float(mean.count) == 1.0
    mean.reset_state()
    mean.update_state(3.0, sample_weight=2.0)
    assert float(mean.count) == 2.0


# The step


def test_a_step_weighs_what_it_is_given() -> None:
    here = step.StepContext(tf.constant(0.25))
    assert here.weight(None) is None
    assert float(here.weight(tf.constant(8.0))) == 2.0
    slices = here.weight(
        tf.IndexedSlices(tf.ones((2, 1)), tf.constant([0, 3]), tf.constant([4, 1]))
    )
    assert slices.values.numpy().tolist() == [[0.25], [0.25]]
    assert slices.indices.numpy().tolist() == [0, 3]
    assert here.weight(tf.constant(8.0, tf.float16)).dtype == tf.float16


def test_an_empty_replica_makes_nothing_of_nan() -> None:
    nan = tf.constant(float("nan"))
    assert float(step.StepContext(tf.constant(0.0), has_empty_replicas=True).weight(nan)) == 0.0
    assert np.isnan(float(step.StepContext(tf.constant(0.5), has_empty_replicas=True).weight(nan)))


def test_the_current_step_is_left_also_by_an_error() -> None:
    outer, inner = step.StepContext(tf.constant(1.0)), step.StepContext(tf.constant(0.5))
    assert step.current() is None
    with step.entered(outer):
        with contextlib.suppress(KeyError), step.entered(inner):
            assert step.current() is inner
            raise KeyError
        assert step.current() is outer
    assert step.current() is None


def test_packed_sums_are_those_of_each_tensor() -> None:
    def replica() -> Any:
        number = tf.distribute.get_replica_context().replica_id_in_sync_group + 1
        real, whole = tf.cast(number, tf.float32), tf.cast(number, tf.int32)
        return step.all_reduce_packed(
            [
                real * tf.ones((2, 3)),
                whole * tf.constant([1, 2]),
                tf.cast(real, tf.bfloat16),
                tf.cast(whole, tf.int64),
                real * tf.zeros((0,)),
            ]
        )

    found = tf.function(lambda: mirrored().run(replica))()
    for part in (0, 1):
        sums = [mirrored().experimental_local_results(v)[part] for v in found]
        assert [s.dtype for s in sums] == [tf.float32, tf.int32, tf.bfloat16, tf.int64, tf.float32]
        assert [s.numpy().tolist() for s in sums] == [[[3.0] * 3] * 2, [3, 6], 3.0, 3, []]


def test_an_empty_replica_of_batches_distributed_by_hand_counts_for_nothing() -> None:
    """The last row of seven is for one replica, and the mean of no rows is no number."""
    rows = np.random.default_rng(0).normal(size=(7, 3)).astype("float32")
    dataset = tf.data.Dataset.from_tensor_slices((rows, rows[:, :1])).batch(3)

    def trained(scope: Any, batches: Any) -> list[np.ndarray]:
        keras.utils.set_random_seed(1)
        with scope:
            model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
            model.compile(keras.optimizers.SGD(0.1), "mse")
        model.fit(batches(dataset), steps_per_epoch=3, verbose=0)
        return model.get_weights()  # type: ignore[no-any-return]

    ours = mirrored()
    one = trained(contextlib.nullcontext(), lambda d: d)
    found = trained(ours.scope(), ours.experimental_distribute_dataset)
    for expected, weight in zip(one, found, strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-5)
