"""Pipelines as people write them; those that stay tell in their docstring why."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

ROWS = 37
rows = tf.data.Dataset.range


def double(i: Any) -> Any:
    return tf.cast(i, tf.float32) * 2, {"filled": tf.fill([3], i)}


def more(x: Any, y: Any) -> Any:
    return {"x": x + 1, "y": y["filled"]}


def mapped() -> Any:
    return rows(ROWS).map(double).batch(8)


def mapped_twice_in_parallel() -> Any:
    return rows(ROWS).map(double).map(more, num_parallel_calls=4).batch(8).prefetch(2)


def shuffled_before() -> Any:
    ordered = rows(ROWS).shuffle(ROWS, seed=3, reshuffle_each_iteration=False)
    return ordered.map(double).batch(8, num_parallel_calls=2).repeat(2)


def remainder_dropped() -> Any:
    return rows(ROWS).map(double).batch(8, drop_remainder=True).take(3)


def rows_repeated_taken_skipped() -> Any:
    return rows(10).map(double).repeat(3).take(27).skip(1).batch(8)


def without_end() -> Any:
    return rows(ROWS).map(double).repeat().batch(8).take(9)


def zipped() -> Any:
    labels = rows(ROWS + 3).map(lambda i: 2 * i)
    return tf.data.Dataset.zip((rows(ROWS).map(double), {"label": labels})).batch(8)


def enumerated() -> Any:
    return rows(ROWS).map(double).enumerate().batch(8)


def interleaved() -> Any:
    files = rows(5).interleave(lambda i: rows(10 * i, 10 * i + 7), cycle_length=2)
    return files.map(double).batch(8)


def filtered_before() -> Any:
    return rows(ROWS).filter(lambda i: i % 3 > 0).map(double).batch(8)


def cached() -> Any:
    return rows(ROWS).map(double).cache().batch(8)


def batches_cached() -> Any:
    return rows(ROWS).map(double).batch(8).cache().prefetch(1)


def looked_up() -> Any:
    values = tf.lookup.KeyValueTensorInitializer(["a", "b"], [1, 2])
    table = tf.lookup.StaticHashTable(values, 0)
    return tf.data.Dataset.from_tensor_slices(["a", "b", "c"] * 9).map(table.lookup).batch(8)


def with_loops_and_branches() -> Any:
    def of(i: Any) -> Any:
        up = tf.map_fn(lambda j: j * i, tf.range(3, dtype=tf.int64))
        return tf.cond(i > 3, lambda: up, lambda: -up)

    return rows(ROWS).map(of).batch(8)


def stateless_random() -> Any:
    return rows(ROWS).map(lambda i: tf.random.stateless_uniform([2], [i, i])).batch(8)


def _with_options() -> Any:
    options = tf.data.Options()
    options.threading.private_threadpool_size = 2
    return options


def with_options() -> Any:
    return rows(ROWS).map(double).with_options(_with_options()).batch(8)


def batches_skipped() -> Any:
    return rows(ROWS).map(double).batch(8).skip(1).take(3)


MOVED = [
    mapped,
    batches_skipped,
    mapped_twice_in_parallel,
    shuffled_before,
    remainder_dropped,
    rows_repeated_taken_skipped,
    without_end,
    zipped,
    enumerated,
    interleaved,
    filtered_before,
    cached,
    batches_cached,
    looked_up,
    with_loops_and_branches,
    stateless_random,
    with_options,
]


def filtered_after() -> Any:
    """filter comes after it"""
    return rows(ROWS).map(double).filter(lambda x, _: x > 5).batch(8)


def shuffled_after() -> Any:
    """shuffle comes after it"""
    mapped = rows(ROWS).map(double)
    return mapped.shuffle(8, seed=1, reshuffle_each_iteration=False).batch(8)


def flat_mapped_after() -> Any:
    """flat_map comes after it"""
    return rows(ROWS).map(lambda i: 2 * i).flat_map(lambda i: rows(i, i + 2)).batch(8)


def cached_before_a_shuffle() -> Any:
    """shuffle comes after it"""
    shuffled = rows(ROWS).map(double).cache().shuffle(8, seed=1, reshuffle_each_iteration=False)
    return shuffled.batch(8)


def shuffled_and_cached() -> Any:
    """cache comes after it"""
    return rows(ROWS).shuffle(8, seed=1).map(double).cache().batch(8)


def whole_batches() -> Any:
    """it is after batch"""
    return rows(ROWS).batch(8).map(lambda i: i - tf.reduce_mean(i))


def padded() -> Any:
    """padded_batch comes after it"""
    return rows(ROWS).map(lambda i: tf.range(i)).padded_batch(8)


def calls_python() -> Any:
    """it calls Python"""
    return (
        rows(ROWS)
        .map(
            lambda i: tf.ensure_shape(
                tf.numpy_function(lambda n: np.int64(2 * n), [i], tf.int64), []
            )
        )
        .batch(8)
    )


def counts_rows() -> Any:
    """may keep a state from row to row"""
    counter = tf.Variable(0, dtype=tf.int64)
    return rows(ROWS).map(lambda i: i + counter.assign_add(1)).batch(8)


def draws() -> Any:
    """it draws random numbers"""
    return rows(ROWS).map(lambda i: tf.random.uniform([2], seed=3)).batch(8)


def ragged() -> Any:
    """ragged or sparse"""
    return rows(ROWS).map(lambda i: tf.RaggedTensor.from_row_lengths(tf.range(i), [i])).batch(8)


def parsed_in_an_interleave() -> Any:
    """interleave of <lambda> at own_rows_pipelines.py"""
    return rows(5).interleave(lambda i: rows(10 * i, 10 * i + 7).map(double)).batch(8)


STAYS = [
    parsed_in_an_interleave,
    filtered_after,
    shuffled_after,
    flat_mapped_after,
    cached_before_a_shuffle,
    shuffled_and_cached,
    whole_batches,
    padded,
    calls_python,
    draws,
    ragged,
]
