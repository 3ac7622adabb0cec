"""The steps that are lowered, and what they say of their model; no TPU's compiler is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import pytest
import tensorflow as tf

from tests.tpu import builders
from tfaccel.target import Target, load
from tfaccel.tpu.dynamic import Selection
from tfaccel.tpu.lower import alone, lower

pytestmark = pytest.mark.child(group="tpu-check")

BUILDERS = builders.__file__


def line_of(text: str) -> int:
    lines = Path(BUILDERS).read_text().splitlines()
    return next(i for i, line in enumerate(lines, 1) if text in line)


@pytest.mark.parametrize(
    ("builder", "shape", "batched"),
    [
        ("own_loss", None, 2),
        ("several", None, 4),
        ("labelled", None, 2),
        ("reconstruction", (6,), 1),
    ],
)
def test_a_step_of_any_model_takes_its_batch(builder: str, shape: Any, batched: int) -> None:
    lowered = lower(load(f"{BUILDERS}:{builder}", shape), 8)
    assert lowered.batched == batched, "rows, and labels where there are some"
    assert len(lowered.hlo) > 1000


def test_a_loss_of_one_s_own_gets_labels_that_it_takes() -> None:
    target = load(f"{BUILDERS}:own_loss")
    assert target.labels.dtype == tf.int32
    assert target.labels.shape.as_list() == [None]


def test_labels_of_several_outputs_are_named() -> None:
    target = load(f"{BUILDERS}:several")
    assert {name: spec.shape.as_list() for name, spec in target.labels.items()} == {
        "x": [None, 1],
        "y": [None],
    }


def selection(builder: str) -> Selection:
    (found,) = lower(load(f"{BUILDERS}:{builder}"), 8).selections
    return found


def test_a_selection_is_found_with_its_size() -> None:
    found = selection("boolean_mask")
    assert found.place == f"layer 'positive', builders.py line {line_of('tf.boolean_mask')}"
    assert (found.operation, found.elements, found.dtype) == ("Where", 32, tf.bool)
    lone = alone(found, 8)
    assert lone is not None
    assert lone.batched == 1, "its rows are divided among the devices"


def test_one_in_a_function_is_found_once_where_it_is_called() -> None:
    found = selection("inner_mask")
    assert found.place == f"layer 'inner', builders.py line {line_of('the call to name')}"
    assert alone(found, 8) is None, "the function was traced for any number of rows"


def test_a_choice_between_two_values_is_no_selection() -> None:
    layer = keras.layers.Lambda(lambda x: tf.where(x > 0, x, 0.0))
    model = keras.Sequential([keras.Input((4,)), layer, keras.layers.Dense(2)])
    model.compile("adam", "mse")
    spec = tf.TensorSpec([None, 4])
    assert lower(Target(model, spec, tf.TensorSpec([None, 2]), ()), 8).selections == ()
