"""What is read from TensorFlow: pipelines, operations of a graph, and tokens of batches."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfaccel.distribute import _private
from tfaccel.monitoring import flops, pipeline
from tfaccel.monitoring.throughput import Throughput


def double(row: Any) -> Any:
    return row * 2


def rows() -> Any:
    return tf.data.Dataset.range(8)


def counts() -> Any:
    yield from range(4)


@pytest.mark.parametrize(
    ("dataset", "candidates"),
    [
        (lambda: rows().batch(2), []),
        (lambda: rows().map(double).batch(2), ["`map` of double at test_measured.py"]),
        (
            lambda: rows().filter(lambda row: row > 0).map(double, 2).cache().batch(2),
            ["`filter` of a lambda at test_measured.py", "`map` of double at test_measured.py"],
        ),
        (
            lambda: rows().interleave(lambda n: tf.data.Dataset.range(n)),
            ["`interleave` of a lambda at test_measured.py"],
        ),
        (lambda: tf.data.TextLineDataset(["a"]).batch(2), ["`text_line`"]),
        (
            lambda: tf.data.Dataset.from_generator(
                counts, output_signature=tf.TensorSpec([], tf.int64)
            ),
            ["`from_generator`"],
        ),
        (
            lambda: tf.data.Dataset.zip((rows().map(double), rows())).batch(2),
            ["`map` of double at test_measured.py"],
        ),
    ],
)
def test_the_parts_of_a_pipeline_that_can_be_waited_for(
    dataset: Any, candidates: list[str]
) -> None:
    found = [name.rpartition(":")[0] or name for name in pipeline.of_dataset(dataset()).candidates]
    assert found == candidates


def test_advice_follows_the_form_of_a_pipeline() -> None:
    best = rows().map(double, num_parallel_calls=2).cache().batch(2).prefetch(2)
    assert pipeline.of_dataset(best).advice == ""
    plain = pipeline.of_dataset(rows().map(double).batch(2)).advice
    assert plain.startswith("Map with num_parallel_calls=tf.data.AUTOTUNE; ")
    late = rows().batch(2).map(double)
    assert "before batch" in pipeline.of_dataset(late, workers=2).advice
    assert "before batch" not in pipeline.of_dataset(late, workers=1).advice


class Rows(keras.utils.PyDataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, number: int) -> Any:
        return np.ones((4, 3)), np.ones((4, 1))


def test_other_sources() -> None:
    def of(*data: Any) -> pipeline.InputSource:
        from keras.src.trainers.data_adapters import get_data_adapter

        return pipeline.source_of(get_data_adapter(*data), 1)

    assert of(np.ones((4, 3)), np.ones((4, 1))).name == "arrays in memory"
    threads = of(Rows(workers=2))
    assert threads.name == "PyDataset with workers=2"
    (candidate,) = threads.candidates
    assert candidate.startswith("Rows.__getitem__ at test_measured.py:")
    assert "workers=N" in of(Rows()).advice
    generator = of((np.ones((4, 3)), np.ones((4, 1))) for _ in range(2))
    assert generator.candidates == ("a Python generator",)


# --- Operations -------------------------------------------------------------------------------


def counted(function: Any, *shapes: tuple[int, ...], unknown_rows: bool = True) -> flops.Flops:
    """Those of a function, traced with rows of unknown number where a batch has them."""
    specs = [tf.TensorSpec([None, *s[1:]] if unknown_rows else s) for s in shapes]
    concrete = tf.function(function).get_concrete_function(*specs)
    names = [tensor.op.name for tensor in concrete.inputs]
    return flops.of_graph(concrete.graph, dict(zip(names, shapes, strict=False)))


def test_products_of_matrices() -> None:
    assert counted(lambda a, b: a @ tf.transpose(b), (8, 3), (5, 3)).count == 2 * 8 * 3 * 5
    assert counted(tf.matmul, (8, 6, 3), (8, 3, 5)).count == 2 * 8 * 6 * 3 * 5
    both = counted(lambda a, b: tf.matmul(a, b, transpose_a=True), (8, 3), (8, 5))
    assert both.count == 2 * 8 * 3 * 5
    attention = counted(lambda q, k: tf.einsum("bqhd,bkhd->bhqk", q, k), (2, 7, 4, 3), (2, 9, 4, 3))
    assert attention.count == 2 * 2 * 7 * 9 * 4 * 3


def test_convolutions_and_their_gradients() -> None:
    def gradients(x: Any) -> Any:
        filters = tf.ones((3, 3, 4, 6))
        with tf.GradientTape() as tape:
            tape.watch([x, filters])
            y = tf.nn.conv2d(x, filters, 2, "SAME")
        return tape.gradient(y, [x, filters])

    assert counted(gradients, (5, 8, 8, 4)).count == 3 * 2 * (5 * 4 * 4 * 6) * (3 * 3 * 4)
    depthwise = counted(
        lambda x: tf.nn.depthwise_conv2d(x, tf.ones((3, 3, 4, 2)), (1, 1, 1, 1), "SAME"),
        (5, 8, 8, 4),
    )
    assert depthwise.count == 2 * (5 * 8 * 8 * 8) * 9


def test_what_is_looked_up_keeps_its_shape() -> None:
    table, weights = tf.Variable(tf.ones((50, 6))), tf.Variable(tf.ones((6, 3)))

    def embedded(ids: Any) -> Any:
        rows = tf.nn.embedding_lookup(table, tf.cast(ids, tf.int32))
        return tf.reshape(rows, [-1, 6]) @ weights

    assert counted(embedded, (4, 7)).count == 2 * (4 * 7) * 6 * 3


def test_loops_are_said_to_be_unknown() -> None:
    def loop(a: Any) -> Any:
        return tf.while_loop(lambda x: tf.reduce_sum(x) < 9.0, lambda x: (x @ x,), [a])

    found = counted(loop, (3, 3), unknown_rows=False)
    assert found.unknown
    assert flops.of_step_or_why(None, None) == (
        None,
        "the step is not one function of TensorFlow that takes a batch",
    )


def test_nothing_but_products_is_counted() -> None:
    assert counted(lambda a: tf.nn.relu(a) + tf.reduce_sum(a * 2), (8, 3)) == flops.Flops(0.0)


# --- Batches ----------------------------------------------------------------------------------


def embeds() -> keras.Model:
    return keras.Sequential([keras.Input((5,)), keras.layers.Embedding(9, 2)])


@pytest.mark.parametrize(
    ("batch", "rows", "tokens"),
    [
        ((tf.ones((4, 5), tf.int32), tf.ones((4, 1))), 4, 20),
        ((tf.ones((4, 5)), tf.ones((4, 1), tf.int32)), 4, None),
        (({"a": tf.ones((4, 1)), "ids": tf.ones((4, 5), tf.int64)}, tf.ones(4)), 4, 20),
        (tf.ones((4, 5), tf.int32), 4, 20),
        (_private.PerReplicaBatch([(tf.ones((2, 5), tf.int32), tf.ones(2))]), 4, 20),
    ],
)
def test_rows_and_tokens_of_a_batch(batch: Any, rows: int, tokens: int | None) -> None:
    if isinstance(batch, _private.PerReplicaBatch):
        batch.global_rows = 4
    found = Throughput(embeds())
    found.see(batch)
    found.see(batch)
    assert found.take() == (2 * rows, None if tokens is None else 2 * tokens)
    assert found.take()[0] == 0


def test_integers_are_no_tokens_where_nothing_embeds_them() -> None:
    found = Throughput(keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)]))
    found.see((tf.ones((4, 5), tf.int32), tf.ones(4)))
    assert found.take() == (4, None)


def test_a_batch_whose_rows_nobody_knows() -> None:
    found = Throughput(embeds())
    found.see(_private.PerReplicaBatch([tf.ones((2, 5), tf.int32)]))
    assert found.take() == (None, None)
