"""`input="per_worker"`: each of two workers, of two devices each, passes its own rows."""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfaccel
from tests.distribute.watched import data, linear, under
from tfaccel.distribute import per_worker
from tfaccel.errors import CheckError, InputError

pytestmark = [pytest.mark.slow, pytest.mark.child(workers=2, group="per_worker")]

X, Y = data(40)
# The rows of each batch of each worker.
Shards = tuple[list[list[int]], list[list[int]]]
EQUAL: Shards = ([[0, 1, 2, 3], [4, 5, 6, 7]], [[8, 9, 10, 11], [12, 13, 14, 15]])
OTHER_ROWS: Shards = ([[0, 1, 2, 3, 4], [5, 6]], [[7, 8], [9, 10, 11, 12, 13, 14]])
OTHER_LENGTHS: Shards = ([[0, 1, 2], [3, 4, 5], [6, 7], [8]], [[9, 10, 11, 12, 13], [14]])
KINDS = {"equal": EQUAL, "other rows": OTHER_ROWS, "other lengths": OTHER_LENGTHS}


@functools.cache
def strategy() -> Any:
    return tfaccel.strategy(
        "multi_worker_mirrored",
        devices=2,
        device_type="cpu",
        input="per_worker",
        batch_norm="synchronized",
        seed=1,
    )


def dataset(batches: list[list[int]], length: str = "known") -> tf.data.Dataset:
    """Batches of these rows, with weights."""
    spec = [tf.TensorSpec([None, n], t) for n, t in ((3, tf.float32), (1, tf.int64))]

    def generate() -> Any:
        for rows in batches:
            yield X[rows], Y[rows], np.asarray(rows, "float32") % 3

    found = tf.data.Dataset.from_generator(
        generate, output_signature=(*spec, tf.TensorSpec([None], tf.float32))
    )
    if length == "known":
        found = found.apply(tf.data.experimental.assert_cardinality(len(batches)))
    return found


def own(shards: Shards, length: str = "known") -> tf.data.Dataset:
    return dataset(shards[strategy().cluster.rank], length)


def together(shards: Shards) -> tf.data.Dataset:
    steps = max(map(len, shards))
    return dataset(
        [[row for shard in shards for row in (*shard[i : i + 1], [])[0]] for i in range(steps)]
    )


def made() -> Any:
    return linear(weighted_metrics=["mae"])


@pytest.mark.parametrize(
    ("kind", "length"),
    [
        ("other lengths", "known"),
        ("other rows", "unknown"),
        *(
            pytest.param(*each, marks=pytest.mark.exhaustive)
            for each in (
                *(("equal", "known"), ("equal", "unknown")),
                *(("other rows", "known"), ("other lengths", "unknown")),
            )
        ),
    ],
)
def test_a_fit_has_one_device_s_numbers(kind: str, length: str) -> None:
    shards = KINDS[kind]
    ours, alone = under(strategy(), made), made()
    expected = alone.fit(together(shards), validation_data=together(EQUAL), epochs=3, verbose=0)
    found = ours.fit(own(shards, length), validation_data=own(EQUAL), epochs=3, verbose=0)
    for name, values in expected.history.items():
        np.testing.assert_allclose(found.history[name], values, rtol=1e-5)
    for one, other in zip(ours.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.parametrize(
    "kind",
    [
        "other lengths",
        *(pytest.param(each, marks=pytest.mark.exhaustive) for each in ("equal", "other rows")),
    ],
)
def test_predictions_are_those_of_the_global_batches(kind: str) -> None:
    shards = KINDS[kind]
    ours, alone = under(strategy(), made), made()
    expected = alone.predict(together(shards), verbose=0)
    found = ours.predict(own(shards), verbose=0)
    assert found.shape == expected.shape
    np.testing.assert_allclose(np.sort(found, 0), np.sort(expected, 0), rtol=1e-5)


@pytest.mark.exhaustive
def test_steps_of_an_endless_dataset() -> None:
    ours, alone = under(strategy(), made), made()
    alone.fit(together(EQUAL).repeat(), steps_per_epoch=3, epochs=2, verbose=0)
    ours.fit(own(EQUAL).repeat(), steps_per_epoch=3, epochs=2, verbose=0)
    np.testing.assert_allclose(ours.get_weights()[0], alone.get_weights()[0], rtol=1e-5)


def test_one_batch_of_each_worker() -> None:
    rank = strategy().cluster.rank
    rows = [[0, 1, 2, 3, 4], [5, 6]]
    ours, alone = under(strategy(), made), made()
    alone.train_on_batch(X[:7], Y[:7])
    ours.train_on_batch(X[rows[rank]], Y[rows[rank]])
    alone.train_on_batch(X[:5], Y[:5])
    one_or_four = slice(0, 1) if rank else slice(1, 5)
    ours.train_on_batch(X[one_or_four], Y[one_or_four])
    np.testing.assert_allclose(ours.get_weights()[0], alone.get_weights()[0], rtol=1e-5)


@pytest.mark.exhaustive
def test_arrays_are_each_worker_s_own() -> None:
    rank = strategy().cluster.rank
    ours, alone = under(strategy(), made), made()
    alone.fit(X[:8], Y[:8], batch_size=8, epochs=2, verbose=0)
    ours.fit(X[4 * rank :][:4], Y[4 * rank :][:4], batch_size=4, epochs=2, verbose=0)
    np.testing.assert_allclose(ours.get_weights()[0], alone.get_weights()[0], rtol=1e-5)


@pytest.mark.parametrize("policy", ["FILE", pytest.param("OFF", marks=pytest.mark.exhaustive)])
def test_a_script_that_shards_by_itself_has_no_shard_policy(policy: str) -> None:
    policies = tf.data.experimental.AutoShardPolicy
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = getattr(policies, policy)
    ours, alone = under(strategy(), made), made()
    alone.fit(together(EQUAL), verbose=0)
    ours.fit(own(EQUAL).with_options(options), verbose=0)
    np.testing.assert_allclose(ours.get_weights()[0], alone.get_weights()[0], rtol=1e-5)


def test_a_dataset_of_a_function_is_each_worker_s_own() -> None:
    """`distribute_datasets_from_function`: each replica gets a batch of its worker's dataset."""

    def of_worker(context: Any) -> tf.data.Dataset:
        assert context.num_input_pipelines == 2
        assert context.input_pipeline_id == strategy().cluster.rank
        return own(([[0, 1], [2, 3], [4, 5], [6, 7]], [[8, 9], [10, 11], [12, 13], [14, 15]]))

    ours, alone = under(strategy(), made), made()
    alone.fit(together(EQUAL), verbose=0)
    ours.fit(strategy().distribute_datasets_from_function(of_worker), steps_per_epoch=2, verbose=0)
    np.testing.assert_allclose(ours.get_weights()[0], alone.get_weights()[0], rtol=1e-5)


def test_batch_normalization_over_the_rows_of_all_workers() -> None:
    def normalized() -> Any:
        stack = [
            keras.layers.Dense(2, kernel_initializer="ones"),
            keras.layers.BatchNormalization(momentum=0.5),
            keras.layers.Dense(1, kernel_initializer="ones"),
        ]
        model = keras.Sequential([keras.Input((3,)), *stack])
        model.compile(keras.optimizers.SGD(0.1), "mse")
        return model

    ours, alone = under(strategy(), normalized), normalized()
    expected = alone.fit(together(OTHER_ROWS), epochs=2, verbose=0).history["loss"]
    found = ours.fit(own(OTHER_ROWS), epochs=2, verbose=0).history["loss"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for one, other in zip(ours.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_what_cannot_be_is_said_on_every_worker(caplog: Any) -> None:
    rank = strategy().cluster.rank
    ours = under(strategy(), made)
    with pytest.raises(InputError, match="worker 1 has no batch at all"):
        ours.fit(own((EQUAL[0], [])), verbose=0)
    other = own(EQUAL).map(lambda x, y, w: (x, y, w) if rank else (x, tf.cast(y, tf.int32), w))
    with pytest.raises(InputError, match="elements of different shapes or types"):
        ours.fit(other, verbose=0)
    per_worker._warned = False
    with caplog.at_level("WARNING", logger="absl"):
        ours.fit(own((EQUAL[0], EQUAL[0])), verbose=0)
    assert "the first batch has the same values on every worker" in caplog.text


def test_the_first_step_check_sees_what_a_shard_counts_for(monkeypatch: Any) -> None:
    plain, checks = per_worker.exact_batch, strategy().checks

    def equal(parts: Any, fractions: Any, *rest: Any) -> Any:
        return plain(parts, [tf.constant(0.25) for _ in fractions], *rest)

    monkeypatch.setattr(checks, "mode", "always")
    ours = under(strategy(), made)
    ours.fit(own(OTHER_ROWS), verbose=0)
    monkeypatch.setattr(per_worker, "exact_batch", equal)
    ours = under(strategy(), made)
    says = "replica 0 would count for 0.25 of the batch; expected 0.428571, as it has 3 of 7 rows"
    with pytest.raises(CheckError, match=says):
        ours.fit(own(OTHER_ROWS), verbose=0)
