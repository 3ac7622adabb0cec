"""Pipelines as people write them; those that stay tell in their docstring why."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfaccel.distribute._private import TFDatasetAdapter

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


def rows_counted() -> Any:
    counted = rows(ROWS).map(double).apply(tf.data.experimental.assert_cardinality(ROWS))
    return counted.batch(8)


def batches_counted() -> Any:
    return rows(ROWS).map(double).batch(8).apply(tf.data.experimental.assert_cardinality(5))


def sharded_the_same_everywhere() -> Any:
    return rows(ROWS).map(double).shard(3, 1).batch(4).shard(2, 0)


def batched_anew() -> Any:
    return rows(ROWS).map(double).batch(5).prefetch(1).unbatch().take(30).batch(8)


def rebatched() -> Any:
    return rows(ROWS).map(double).batch(5).rebatch(8)


def padded_to_a_known_size() -> Any:
    def of(i: Any) -> Any:
        return {"ids": tf.range(i), "text": tf.fill([i % 3], "a"), "n": i}

    sizes = {"ids": [ROWS], "text": [4], "n": []}
    values = {"ids": tf.constant(-1, tf.int64), "text": "-", "n": tf.constant(0, tf.int64)}
    return rows(ROWS).map(of).padded_batch(8, sizes, values)


def rows_of_other_shapes_at_the_cut() -> Any:
    made = rows(ROWS).map(lambda i: (tf.range(i), tf.fill([i % 3], i % 2 > 0), i))
    kept = made.filter(lambda x, y, i: i % 5 > 0)
    return kept.map(lambda x, y, i: (tf.reduce_sum(x), tf.reduce_any(y), i)).batch(8)


def generated_rows_of_other_shapes() -> Any:
    def generate() -> Any:
        for i in range(ROWS):
            yield {"x": np.arange(i, dtype="float32")}

    spec = {"x": tf.TensorSpec([None])}
    generated = tf.data.Dataset.from_generator(generate, output_signature=spec)
    return generated.map(lambda row: tf.pad(row["x"], [[0, ROWS - tf.size(row["x"])]])).batch(8)


def files_cached() -> Any:
    files = rows(5).interleave(lambda i: rows(10 * i, 10 * i + 7), num_parallel_calls=2)
    return files.map(double).cache().batch(8).repeat(2)


def cached_in_the_middle() -> Any:
    return rows(ROWS).map(double).cache().prefetch(1).map(more).batch(8)


def cached_again_and_again() -> Any:
    return rows(ROWS).map(double).cache().cache().map(more).cache().batch(8).cache()


def shuffled_to_one_order_and_cached() -> Any:
    ordered = rows(ROWS).shuffle(ROWS, seed=3, reshuffle_each_iteration=False)
    return ordered.filter(lambda i: i % 5 > 0).map(double).cache().map(more).batch(8)


def cached_and_taken() -> Any:
    taken = rows(ROWS).map(double).cache().skip(1).take(30).map(more).shard(2, 1)
    return taken.cache().take(13).batch(4)


def cached_and_repeated() -> Any:
    repeated = rows(32).map(double).cache().repeat(2).map(more).cache().repeat(2)
    return repeated.map(lambda row: (row["x"], row["y"])).batch(8)


def cached_and_zipped() -> Any:
    def pair(number: Any, of: Any) -> Any:
        return number, of["a"], of["b"][0] + of["b"][1]["filled"][0]

    a = rows(ROWS).map(lambda i: 3 * i).cache().cache()
    a = a.map(lambda i: i + 1)
    zipped = tf.data.Dataset.zip({"a": a, "b": rows(ROWS).map(double).cache().map(_as_numbers)})
    return zipped.enumerate().map(pair).batch(8)


def _as_numbers(x: Any, y: Any) -> Any:
    return tf.cast(x, tf.int64), y


def concatenated() -> Any:
    def halved(i: Any) -> Any:
        return tf.cast(i, tf.float32) / 2, {"filled": tf.fill([3], 2 * i)}

    cached = rows(ROWS).map(double).cache().map(lambda x, y: (x + 1, y)).cache()
    parts = cached.concatenate(rows(9).map(halved)).concatenate(rows(5).map(double).cache())
    return parts.skip(2).map(more).batch(8)


def rows_of_other_shapes_cached() -> Any:
    made = rows(ROWS).map(lambda i: (tf.range(i), tf.fill([i % 3], i % 2 > 0), i)).cache()
    return made.map(lambda x, y, i: (tf.reduce_sum(x), tf.reduce_any(y), i)).batch(8)


def cached_and_padded() -> Any:
    return rows(ROWS).map(lambda i: tf.range(i)).cache().padded_batch(8, [ROWS])


def shuffled_after() -> Any:
    mapped = rows(ROWS).map(double)
    return mapped.shuffle(8, seed=1, reshuffle_each_iteration=False).batch(8)


def skipped_below_a_shuffle() -> Any:
    skipped = rows(ROWS).map(double).skip(2)
    return skipped.shuffle(8, seed=1, reshuffle_each_iteration=False).skip(1).batch(8)


def shuffled_and_repeated() -> Any:
    labels = rows(ROWS).map(lambda i: 3 * i).shuffle(5, seed=2, reshuffle_each_iteration=False)
    pairs = tf.data.Dataset.zip((rows(ROWS).map(double), labels))
    shuffled = pairs.shuffle(8, seed=1, reshuffle_each_iteration=False).repeat(2)
    return shuffled.map(lambda x, label: (more(*x), label)).cache().batch(8)


def windows_cached() -> Any:
    windows = rows(ROWS).window(5, shift=2, drop_remainder=True).flat_map(lambda w: w.batch(5))
    return windows.map(lambda w: (w[:4], tf.reduce_sum(w[4:]))).batch(8).cache()


def batches_cached_and_shuffled() -> Any:
    batches = rows(ROWS).map(double).batch(8).cache()
    return batches.shuffle(3, seed=1, reshuffle_each_iteration=False).prefetch(1)


def batches_shuffled_and_cached() -> Any:
    shuffled = batches_cached_and_shuffled().repeat(2).skip(1).cache()
    return shuffled.shuffle(9, seed=2, reshuffle_each_iteration=False).take(7)


def class_weighted() -> Any:
    pairs = rows(ROWS).map(lambda i: (tf.fill([3], i), i % 3)).batch(8)
    return TFDatasetAdapter(pairs, class_weight={0: 2.0, 2: 0.5}).get_tf_dataset()


def batches_normalized() -> Any:
    batches = rows(ROWS).map(double).batch(8)
    return batches.map(lambda i, j: (i / 9, tf.one_hot(j["filled"], 5))).cache()


def batches_computed_alone() -> Any:
    ordered = rows(ROWS).shuffle(8, seed=1, reshuffle_each_iteration=False)
    return ordered.batch(8).map(lambda i: 2 * i).prefetch(2)


MOVED = [
    batches_normalized,
    batches_computed_alone,
    shuffled_after,
    skipped_below_a_shuffle,
    shuffled_and_repeated,
    windows_cached,
    batches_cached_and_shuffled,
    batches_shuffled_and_cached,
    cached_in_the_middle,
    cached_again_and_again,
    shuffled_to_one_order_and_cached,
    cached_and_taken,
    cached_and_repeated,
    cached_and_zipped,
    concatenated,
    rows_of_other_shapes_cached,
    cached_and_padded,
    class_weighted,
    rows_counted,
    batches_counted,
    sharded_the_same_everywhere,
    batched_anew,
    rebatched,
    padded_to_a_known_size,
    generated_rows_of_other_shapes,
    files_cached,
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


def flat_mapped_after() -> Any:
    """flat_map comes after it"""
    return rows(ROWS).map(lambda i: 2 * i).flat_map(lambda i: rows(i, i + 2)).batch(8)


def cached_before_a_shuffle() -> Any:
    """cache comes after it, then shuffle; with shuffle after batch it may move"""
    shuffled = rows(ROWS).map(double).cache().shuffle(8, seed=1, reshuffle_each_iteration=False)
    return shuffled.batch(8)


def shuffled_and_cached() -> Any:
    """cache comes after it, of rows whose order a shuffle draws in each pass; with reshuffle"""
    return rows(ROWS).shuffle(8, seed=1).map(double).cache().batch(8)


def cached_and_repeated_within_a_batch() -> Any:
    """cache comes after it, then repeat, of rows not known to fill batches of 8; with repeat"""
    return rows(ROWS).map(double).cache().repeat(2).batch(8)


def cached_repeated_and_taken() -> Any:
    """cache comes after it, then repeat and take; with repeat after batch it may move"""
    return rows(32).map(double).cache().repeat(2).take(40).batch(8)


def cached_and_zipped_with_rows_that_may_differ() -> Any:
    """cache comes after it, then zip with rows that may differ"""
    seeds = tf.data.Dataset.random(seed=1)
    return tf.data.Dataset.zip((rows(ROWS).map(double).cache(), seeds)).batch(8)


def concatenated_rows_of_two_sources() -> Any:
    """concatenate comes after it of rows that differ in structure before a map"""
    pairs = tf.data.Dataset.zip((rows(9), rows(9))).map(lambda i, j: i - j)
    return rows(ROWS).map(lambda i: 2 * i).concatenate(pairs).batch(8)


def zipped_with_ragged_rows() -> Any:
    """zip comes after it with ragged or sparse rows"""
    ragged = tf.data.Dataset.from_tensor_slices(tf.RaggedTensor.from_row_lengths(range(6), [1, 5]))
    return tf.data.Dataset.zip((rows(ROWS).map(double), ragged)).batch(2)


def whole_batches() -> Any:
    """it is after batch, where Mean in it may take the rows of a batch together, and before it"""
    return rows(ROWS).batch(8).map(lambda i: i - tf.reduce_mean(i))


def padded() -> Any:
    """padded_batch comes after it, and pads to the longest row of a batch; with padded_shapes"""
    return rows(ROWS).map(lambda i: tf.range(i)).padded_batch(8)


def unbatched_of_dropped_rows() -> Any:
    """unbatch comes after it"""
    return rows(ROWS).map(double).batch(5, drop_remainder=True).unbatch().batch(8)


def rebatched_to_several_sizes() -> Any:
    """rebatch comes after it"""
    return rows(ROWS).map(double).batch(5).rebatch([4, 6])


def mapped_and_batched_in_one() -> Any:
    """it is one step with batch"""
    rows = tf.data.Dataset.range(11)
    return rows.apply(tf.data.experimental.map_and_batch(double, 4))


def ragged_batches() -> Any:
    """ragged_batch comes after it"""
    return rows(ROWS).map(lambda i: tf.range(i)).ragged_batch(8)


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


def parsed_in_an_interleave_below_a_shuffle() -> Any:
    """may give any number of rows for each element; what it maps would run on own rows alone"""
    files = rows(5).interleave(lambda i: rows(10 * i, 10 * i + 7).map(double))
    return files.shuffle(8, seed=1, reshuffle_each_iteration=False).batch(8)


STAYS = [
    parsed_in_an_interleave,
    parsed_in_an_interleave_below_a_shuffle,
    unbatched_of_dropped_rows,
    rebatched_to_several_sizes,
    mapped_and_batched_in_one,
    ragged_batches,
    filtered_after,
    flat_mapped_after,
    cached_before_a_shuffle,
    shuffled_and_cached,
    cached_and_repeated_within_a_batch,
    cached_repeated_and_taken,
    cached_and_zipped_with_rows_that_may_differ,
    concatenated_rows_of_two_sources,
    zipped_with_ragged_rows,
    whole_batches,
    padded,
    calls_python,
    draws,
    ragged,
]
