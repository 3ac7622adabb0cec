"""A whole training step (forward, backward, optimizer) as the HLO that XLA compiles."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from tfaccel.distribute import _private
from tfaccel.tpu.blame import UnsupportedError, data_dependent, unsupported
from tfaccel.tpu.target import Target


@dataclass(frozen=True)
class Lowered:
    """One step for one global batch.

    Attributes:
        hlo: a serialized HloModule; its first arguments are the batch.
        batched: how many those are.
        warnings: operations whose shapes depend on data.
    """

    hlo: bytes
    batched: int
    warnings: tuple[str, ...]


def lower(target: Target, rows: int) -> Lowered:
    """Lowers the step of `target` for a global batch of `rows` rows.

    Raises:
        UnsupportedError: an operation that XLA does not have.
    """
    x, y = target.batch(rows)
    model = target.model
    symbolic = tf.nest.map_structure(lambda s: keras.KerasTensor(s.shape, s.dtype.name), (x, y))
    _private.build_all(model, *symbolic)
    flat = tf.nest.flatten((x, y))

    def step(*parts: tf.Tensor) -> Any:
        return model.train_step(tf.nest.pack_sequence_as((x, y), parts))

    compiled = tf.function(step, jit_compile=True, autograph=False)
    graph = compiled.get_concrete_function(*flat).graph
    try:
        hlo = compiled.experimental_get_compiler_ir(*flat)(stage="hlo_serialized")
    except (ValueError, tf.errors.OpError) as error:
        raise _reason(error, model) from error
    return Lowered(hlo, len(flat), data_dependent(graph, model))


def _reason(error: Exception, model: keras.Model) -> UnsupportedError:
    found = unsupported(str(error), model)
    if found is not None:
        return found
    line = re.sub(r"^Failed getting HLO text: '", "", str(error)).splitlines()[0]
    return UnsupportedError(line)
