"""A step that is traced together with one of another update is that which is traced alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from unittest import mock

import keras
import pytest
import tensorflow as tf
from keras import layers

from tests.planner.builders import BUILDERS
from tfaccel.planner import batch_sizes, step_parts, trace
from tfaccel.planner.models import Models
from tfaccel.planner.steps import Step


def compiled(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> keras.Model:
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def scheduled() -> keras.Model:
    """Moving averages of weights, a schedule, a constraint and dropout."""
    hidden = layers.Dense(16, kernel_constraint=keras.constraints.MaxNorm())
    model = keras.Sequential([keras.Input((7,)), hidden, layers.Dropout(0.5), layers.Dense(5)])
    rate = keras.optimizers.schedules.CosineDecay(0.1, 100)
    return compiled(model, keras.optimizers.AdamW(rate, weight_decay=0.1, use_ema=True))


def normalised() -> keras.Model:
    """Statistics that the forward part changes, and an embedding's sparse gradients."""
    ids = keras.Input((6,), dtype="int32")
    x = layers.Embedding(2048, 8)(ids)
    x = layers.BatchNormalization()(x)
    model = keras.Model(ids, layers.Dense(5)(layers.Flatten()(x)))
    return compiled(model, keras.optimizers.Adam(clipnorm=1.0))


class Twice(keras.Model):  # type: ignore[misc]
    """Updates two times in a step."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = layers.Dense(5)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.dense(x)

    def train_step(self, data: tuple[tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
        for _ in range(2):
            with tf.GradientTape() as tape:
                loss = self.compute_loss(data[0], data[1], self(data[0], training=True))
            weights = self.trainable_variables
            self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return {"loss": loss}


def twice() -> keras.Model:
    model = Twice()
    model.build((None, 7))
    return compiled(model, keras.optimizers.Adam())


def of(step: Step) -> Step:
    """Without names, which are numbered in each graph, and in no order of what is waited for."""
    operations = tuple(
        dataclasses.replace(op, name="", after=tuple(sorted(op.after))) for op in step.operations
    )
    return dataclasses.replace(step, operations=operations)


SHOWN = {**BUILDERS, "scheduled": scheduled, "normalised": normalised}


@pytest.mark.parametrize(
    "precision", ["float32", pytest.param("mixed_float16", marks=pytest.mark.exhaustive)]
)
@pytest.mark.parametrize(
    "name",
    [n if n == "scheduled" else pytest.param(n, marks=pytest.mark.exhaustive) for n in SHOWN],
)
def test_a_step_traced_with_another_is_that_traced_alone(name: str, precision: str) -> None:
    """Operations, their order, what they take and wait for, shapes, gradients and constants."""
    build = SHOWN[name]
    plain = mock.Mock(wraps=step_parts.parts)
    with mock.patch.object(step_parts, "parts", plain):
        together = Models(build, (2, 31), together=True)
        alone = Models(build, (2, 31))
        for fused in (False, True):
            found = together.variant(precision, fused).step
            assert of(found) == of(alone.variant(precision, fused).step)
    adam = name not in ("odd", "cnn")
    assert plain.called == adam
    with_adam = together.variant(precision, True).step
    assert any(op.kind == "ResourceApplyAdam" for op in with_adam.operations) == adam


def test_two_updates_in_a_step_are_traced_alone() -> None:
    """Nothing then says which of the operations belong to which."""
    together, alone = Models(twice, (2, 31), (7,), together=True), Models(twice, (2, 31), (7,))
    for fused in (False, True):
        found = together.variant("float32", fused).step
        assert of(found) == of(alone.variant("float32", fused).step)


def graph_of(step: Callable[[], tf.Tensor]) -> tf.Graph:
    return tf.function(step, autograph=False).get_concrete_function().graph


def test_the_order_of_the_program_is_that_of_tensorflow() -> None:
    """Of a whole graph the rule gives what TensorFlow gives; of a part what a trace of it gives."""
    weight, other = tf.Variable(1.0), tf.Variable(2.0)

    def step(updates: list[int]) -> tuple[tf.Tensor, list[int]]:
        ends = []
        seen = weight * other
        ends.append(len(tf.compat.v1.get_default_graph().get_operations()))
        for update in updates:
            weight.assign_sub(seen * float(update))
            if update == 2:
                other.assign_add(weight)
            ends.append(len(tf.compat.v1.get_default_graph().get_operations()))
        return weight + other, ends

    ends: list[int] = []

    def of_updates(updates: list[int]) -> tf.Graph:
        def traced() -> tf.Tensor:
            result, ends[:] = step(updates)
            return result

        return graph_of(traced)

    both = of_updates([1, 2])
    found = step_parts.parts(both, list(ends))
    assert found is not None
    for part, update in zip(found, (1, 2), strict=True):
        alone = of_updates([update])
        made = step_parts.whole(alone)
        shown = [[g.get_operations()[i].type for i in p.operations] for g, p in
                 ((both, part), (alone, made))]  # fmt: skip
        assert shown[0] == shown[1]
        numbers = [{i: k for k, i in enumerate(p.operations)} for p in (part, made)]
        waits = [
            [sorted(number[j] for j in p.waits[i] if j in number) for i in p.operations]
            for p, number in zip((part, made), numbers, strict=True)
        ]
        assert waits[0] == waits[1]


def test_what_follows_an_update_by_its_values_is_not_told_apart() -> None:
    weight = tf.Variable(1.0)
    ends: list[int] = []

    def traced() -> tf.Tensor:
        graph = tf.compat.v1.get_default_graph()
        for _ in range(2):
            ends.append(len(graph.get_operations()))
            weight.assign_add(1.0)
            changed = weight.read_value()
        ends.append(len(graph.get_operations()))
        return tf.identity(changed)

    assert step_parts.parts(graph_of(traced), ends) is None


def test_a_trace_ends_where_it_is_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smaller batch is traced up to the gradients, and its sizes are those of a whole trace."""
    ended: list[str] = []
    until = trace._until

    def watched(ends, *args):  # type: ignore[no-untyped-def]
        ended.append(ends[0][1])
        return until(ends, *args)

    monkeypatch.setattr(trace, "_until", watched)
    short = Models(BUILDERS["transformer"], (2, 31)).variant("float32", True).step
    assert ended == ["gradient"]
    monkeypatch.setattr(batch_sizes, "of_graphs", lambda few, graph: {})
    assert of(short) == of(Models(BUILDERS["transformer"], (2, 31)).variant("float32", True).step)


def test_a_step_that_computes_layers_again_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its flat gradients have sizes of their own, which follow from what they are reshaped from."""
    traced: list[int] = []
    traces = trace._traces

    def watched(target, strategy, rows, updates):  # type: ignore[no-untyped-def]
        traced.append(rows)
        return traces(target, strategy, rows, updates)

    def step() -> Step:
        models = Models(BUILDERS["transformer"], (2, 31))
        assert models.variant("float32", True).step.operations
        traced.clear()
        return models.variant("float32", True, rematerialized=True).step

    monkeypatch.setattr(trace, "_traces", watched)
    short = step()
    assert traced == [31]
    monkeypatch.setattr(batch_sizes, "reshaped", lambda step, sizes: {})
    assert of(short) == of(step())
    assert traced == [31, 2]
