"""Steps under TPUStrategy, traced on a host without a TPU: what the TPU would be given."""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.distribute.fake_tpu import NO_KERNEL, Resolver
from tfaccel.distribute.batches import shard_host_batch
from tfaccel.distribute.multi_step import MultiStepBatches
from tfaccel.distribute.steps_per_execution import StepsPerExecution
from tfaccel.distribute.tpu_strategy import TPUStrategy
from tfaccel.errors import InputError, StrategyError

pytestmark = pytest.mark.child(group="tpu")

CORES = 4


@functools.cache
def strategy() -> TPUStrategy:
    return TPUStrategy(Resolver(CORES))


def cnn() -> keras.Model:
    stem = [layers.Conv2D(4, 3), layers.BatchNormalization(), layers.Dropout(0.2)]
    return keras.Sequential([keras.Input((6, 6, 3)), *stem, layers.Flatten(), layers.Dense(5)])


def transformer() -> keras.Model:
    tokens = keras.Input((7,), dtype="int32")
    x = layers.Embedding(5, 8)(tokens)
    x += layers.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True)
    return keras.Model(tokens, layers.Dense(5)(layers.LayerNormalization()(x)))


def lstm() -> keras.Model:
    tokens = keras.Input((7,), dtype="int32")
    x = layers.Embedding(5, 8, mask_zero=True)(tokens)
    return keras.Model(tokens, layers.Dense(5)(layers.LSTM(6)(x)))


BUILD = {"cnn": cnn, "transformer": transformer, "lstm": lstm}


def compiled(name: str, optimizer: Any = "adam", **options: Any) -> keras.Model:
    with strategy().scope():
        model = BUILD[name]()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        made = keras.optimizers.get(optimizer) if isinstance(optimizer, str) else optimizer()
        model.compile(made, loss, metrics=["accuracy"], **options)
    return model


def batch(name: str, rows: int) -> tuple[np.ndarray, np.ndarray]:
    if name == "cnn":
        return np.zeros((rows, 6, 6, 3), "float32"), np.zeros(rows, "int32")
    labels = (rows,) if name == "lstm" else (rows, 7)
    return np.zeros((rows, 7), "int32"), np.zeros(labels, "int32")


def traced(model: keras.Model, function: Any, data: Any) -> tf.Graph:
    cut = shard_host_batch(data, strategy().placement, "pad")

    @tf.function
    def run(given: Any) -> Any:
        return strategy().run(function, args=(given,))

    with strategy().scope():  # as `fit` does
        model._symbolic_build(data_batch=data)
        return run.get_concrete_function(cut).graph


def operations(graph: tf.Graph) -> Counter[str]:
    functions = graph.as_graph_def().library.function
    inner = [node.op for function in functions for node in function.node_def]
    return Counter([*(op.type for op in graph.get_operations()), *inner])


def test_a_variable_lies_on_every_core() -> None:
    model = compiled("cnn")
    assert strategy().num_replicas_in_sync == CORES
    assert all(len(v.value.values) == CORES for v in model.trainable_variables)


# Optimizers of the other one are below.
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.exhaustive) if n == "cnn" else n for n in BUILD]
)
def test_each_gradient_is_summed_once_and_all_else_in_one_message(name: str) -> None:
    model = compiled(name)
    found = operations(traced(model, model.train_step, batch(name, 8)))
    assert found["CrossReplicaSum"] == len(model.trainable_variables) + 1


def test_what_is_evaluated_is_put_together_in_one_message() -> None:
    model = compiled("cnn")
    assert operations(traced(model, model.test_step, batch("cnn", 8)))["CrossReplicaSum"] == 1


@pytest.mark.parametrize(
    "optimizer",
    [
        functools.partial(keras.optimizers.AdamW, global_clipnorm=1.0, use_ema=True),
        functools.partial(keras.optimizers.SGD, gradient_accumulation_steps=2),
    ],
    ids=["clipped", "accumulated"],
)
def test_an_optimizer_sees_summed_gradients(optimizer: Any) -> None:
    model = compiled("cnn", optimizer)
    found = operations(traced(model, model.train_step, batch("cnn", 8)))
    assert found["CrossReplicaSum"] == len(model.trainable_variables) + 1


@pytest.mark.parametrize("rows", [pytest.param(8, marks=pytest.mark.exhaustive), 7, 2])
def test_shapes_are_static_and_rows_are_filled_up(rows: int) -> None:
    model = compiled("transformer")
    graph = traced(model, model.train_step, batch("transformer", rows))
    given = [op for op in graph.get_operations() if op.type == "TPUReplicatedInput"]
    shapes = [op.outputs[0].shape for op in given if op.outputs[0].dtype != tf.resource]
    assert shapes
    assert all(shape.is_fully_defined() for shape in shapes)
    assert (-(-rows // CORES), 7) in [tuple(shape) for shape in shapes]


@pytest.mark.parametrize(
    ("method", "steps"),
    [
        ("fit", 3),
        pytest.param("evaluate", 1, marks=pytest.mark.exhaustive),  # its one message is above
        ("predict", 1),
        pytest.param("fit", 1, marks=pytest.mark.exhaustive),  # below, of batches with None
        pytest.param("evaluate", 3, marks=pytest.mark.exhaustive),
        pytest.param("predict", 3, marks=pytest.mark.exhaustive),
    ],
)
def test_keras_reaches_the_tpu_and_only_that_is_missing(method: str, steps: int) -> None:
    model = compiled("cnn", steps_per_execution=steps)
    x, y = batch("cnn", 22)
    data = (x,) if method == "predict" else (x, y)
    with pytest.raises(tf.errors.InvalidArgumentError, match=NO_KERNEL) as error:
        getattr(model, method)(*data, batch_size=8, verbose=0)
    assert ("multi_step_on_iterator" in str(error.value)) == (method != "predict")


@pytest.mark.parametrize("steps", [1, pytest.param(3, marks=pytest.mark.exhaustive)])
def test_a_batch_may_hold_none(steps: int) -> None:
    model = compiled("cnn", steps_per_execution=steps)
    generated = ((*batch("cnn", rows), None) for rows in (8, 8, 6))
    with pytest.raises(tf.errors.InvalidArgumentError, match=NO_KERNEL) as error:
        model.fit(generated, verbose=0)
    assert "multi_step_on_iterator" in str(error.value)


@pytest.mark.parametrize(
    "method", ["train_step", pytest.param("test_step", marks=pytest.mark.exhaustive)]
)
def test_steps_of_one_call_are_those_of_one_step(method: str) -> None:
    model = compiled("cnn")
    x, y = batch("cnn", 22)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    step = getattr(model, method)

    @tf.function
    def call(batches: Any) -> Any:
        def some(count: tf.Tensor) -> list[tf.Tensor]:
            strategy().run(step, args=(batches.get_next(),))
            return [count + 1]

        return tf.while_loop(lambda count: count < 2, some, [tf.constant(0)])

    with strategy().scope():
        model._symbolic_build(data_batch=(x, y))
        passes = MultiStepBatches(data, strategy().placement, "pad")
        found = operations(call.get_concrete_function(iter(passes)).graph)
    variables = len(model.trainable_variables) if method == "train_step" else 0
    assert found["CrossReplicaSum"] == variables + 1
    given = [s.shape for s in tf.nest.flatten(iter(passes).element_spec, expand_composites=True)]
    assert all(shape.is_fully_defined() for shape in given)
    assert (2, 6, 6, 3) in [tuple(shape) for shape in given]


def test_the_number_of_steps_in_a_call_can_be_set() -> None:
    for asked, expected in ((None, 3), (2, 2), (1, 1)):
        strategy().steps_per_execution = StepsPerExecution(asked)
        model = compiled("cnn")
        with pytest.raises(tf.errors.InvalidArgumentError, match=NO_KERNEL):
            model.fit(*batch("cnn", 22), batch_size=8, verbose=0)
        assert model.steps_per_execution == expected
    strategy().steps_per_execution = StepsPerExecution()


def test_predictions_of_padding_rows_are_dropped_on_the_host() -> None:
    model = compiled("cnn")
    model.make_predict_function()
    cut = shard_host_batch(batch("cnn", 6)[:1], strategy().placement, "pad")
    graph = model.predict_function.get_concrete_function([cut]).graph
    (out,) = graph.outputs
    assert out.shape.as_list() == [None, 5]
    assert "_tpu_replicate" not in out.op.node_def.attr


def test_mixed_bfloat16_keeps_sums_in_float32() -> None:
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    try:
        model = compiled("cnn")
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    graph = traced(model, model.train_step, batch("cnn", 8))
    sums = [op for op in graph.get_operations() if op.type == "CrossReplicaSum"]
    assert {op.outputs[0].dtype for op in sums} == {tf.float32}
    assert any(t.dtype == tf.bfloat16 for op in graph.get_operations() for t in op.outputs)


def test_strings_do_not_fit() -> None:
    with pytest.raises(InputError, match="the batch holds strings; expected dense numbers"):
        shard_host_batch((np.array(["a"]),), strategy().placement, "pad")


@pytest.mark.parametrize("option", ["jit_compile", "run_eagerly"])
def test_what_a_tpu_does_by_itself_is_refused(option: str) -> None:
    model = compiled("cnn", **{option: True})
    with pytest.raises(StrategyError, match=f"{option}=True was requested on a TPU"):
        model.fit(*batch("cnn", 8), batch_size=8, verbose=0)
