"""A whole training step (forward, backward, optimizer) as the HLO that XLA compiles."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from tfaccel.distribute import _private
from tfaccel.target import Target
from tfaccel.tpu import error_attribution
from tfaccel.tpu.dynamic import Selection, selections
from tfaccel.tpu.source_location import Origins


@dataclass(frozen=True)
class Lowered:
    """One step for one global batch.

    Attributes:
        hlo: a serialized HloModule; its first arguments are the batch.
        batched: how many those are.
        selections: its operations whose shapes depend on data.
    """

    hlo: bytes
    batched: int
    selections: tuple[Selection, ...] = ()


def lower(target: Target, rows: int) -> Lowered:
    """Lowers the step of `target` for a global batch of `rows` rows.

    Raises:
        UnsupportedError: an operation that XLA does not support.
    """
    x, y = target.batch(rows)
    if target.model.loss is None:
        # A custom step: `fit` may pass it labels, or only rows.
        with contextlib.suppress(TypeError, ValueError, tf.errors.OperatorNotAllowedInGraphError):
            return _lowered(target.model, x, None)
    return _lowered(target.model, x, y)


def _lowered(model: keras.Model, x: Any, y: Any) -> Lowered:
    symbolic = tf.nest.map_structure(
        lambda s: None if s is None else keras.KerasTensor(s.shape, s.dtype.name), (x, y)
    )
    _private.build_all(model, *symbolic)
    data = x if y is None else (x, y)
    flat = tf.nest.flatten(data)

    def step(*parts: tf.Tensor) -> Any:
        return model.train_step(tf.nest.pack_sequence_as(data, parts))

    compiled = tf.function(step, jit_compile=True, autograph=False)
    graph = compiled.get_concrete_function(*flat).graph
    origins = Origins(graph, model)
    try:
        hlo = compiled.experimental_get_compiler_ir(*flat)(stage="hlo_serialized")
    except (ValueError, tf.errors.OpError) as error:
        raise error_attribution.attribute_error(str(error), graph, origins) from error
    return Lowered(hlo, len(flat), selections(graph, origins))


def alone(selection: Selection, rows: int) -> Lowered | None:
    """Lowers a selection in isolation, to find its cost.

    Args:
        selection: from a step.
        rows: of that step's global batch.

    Returns:
        None if its shape is unknown, or it selects by more than one tensor.
    """
    operation = {"Where": tf.where, "Unique": _distinct, "UniqueV2": _distinct}.get(
        selection.operation
    )
    if operation is None or not selection.shape:
        return None
    spec = tf.TensorSpec(selection.shape, selection.dtype)

    def select(source: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.cast(operation(source), tf.float32))

    lone = tf.function(select, jit_compile=True, autograph=False)
    hlo = lone.experimental_get_compiler_ir(spec)(stage="hlo_serialized")
    return Lowered(hlo, int(selection.shape[0] % rows == 0))


def _distinct(source: tf.Tensor) -> tf.Tensor:
    return tf.unique(tf.reshape(source, [-1])).y
