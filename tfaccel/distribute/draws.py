"""Random operations that give the same number everywhere, for a step that is compared.

Two runs of a step over the same rows, one of them in parts, draw other numbers for each row. While
this is on, what is traced has a constant in place of each draw.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tfaccel.distribute import _private

_UNIFORM, _NORMAL = 0.9, 0.6  # units are kept by Dropout up to that rate


class UnknownDrawError(Exception):
    """A random operation of which we cannot say what it gives."""


@contextlib.contextmanager
def constant() -> Iterator[None]:
    """Makes random operations of the graphs that are traced now give constants."""
    with _private.operations_replaced(_constant):
        yield


def _constant(op: Any) -> list[tf.Tensor] | None:
    """What to use in place of the outputs of `op`; None for those."""
    draw = _DRAWS.get(op.type)
    if draw is not None:
        return [draw(op)]
    if any(word in op.type for word in ("Random", "Multinomial", "TruncatedNormal", "SampleDist")):
        if op.type in ("StatelessRandomGetKeyCounter", "StatelessRandomGetAlg", "RandomDataset"):
            return None
        if op.type.startswith("StatelessRandomGetKeyCounter"):
            return None
        raise UnknownDrawError(op.type)
    return None


def _fill(value: float, shape: int = 0) -> Callable[[Any], tf.Tensor]:
    def draw(op: Any) -> tf.Tensor:
        return tf.fill(op.inputs[shape], tf.cast(value, op.outputs[0].dtype))

    return draw


def _middle(shape: int, low: int) -> Callable[[Any], tf.Tensor]:
    def draw(op: Any) -> tf.Tensor:
        least, most = op.inputs[low], op.inputs[low + 1]
        return tf.fill(op.inputs[shape], least + (most - least) // 2)

    return draw


def _seven(shape: int) -> Callable[[Any], tf.Tensor]:
    return _fill(7, shape)


def _first(op: Any) -> tf.Tensor:
    return tf.identity(op.inputs[0])


def _class_zero(op: Any) -> tf.Tensor:
    rows = tf.shape(op.inputs[0])[0]
    return tf.zeros([rows, op.inputs[1]], op.outputs[0].dtype)


_DRAWS: dict[str, Callable[[Any], tf.Tensor]] = {
    "RandomUniform": _fill(_UNIFORM),
    "RandomUniformInt": _middle(0, 1),
    "RandomStandardNormal": _fill(_NORMAL),
    "TruncatedNormal": _fill(_NORMAL),
    "RandomShuffle": _first,
    "Multinomial": _class_zero,
    "StatelessMultinomial": _class_zero,
    "StatelessRandomUniform": _fill(_UNIFORM),
    "StatelessRandomUniformV2": _fill(_UNIFORM),
    "StatelessRandomUniformInt": _middle(0, 2),
    "StatelessRandomUniformIntV2": _middle(0, 4),
    "StatelessRandomUniformFullInt": _seven(0),
    "StatelessRandomUniformFullIntV2": _seven(0),
    "StatelessRandomNormal": _fill(_NORMAL),
    "StatelessRandomNormalV2": _fill(_NORMAL),
    "StatelessTruncatedNormal": _fill(_NORMAL),
    "StatelessTruncatedNormalV2": _fill(_NORMAL),
    "StatefulUniform": _fill(_UNIFORM, 2),
    "StatefulUniformInt": _middle(2, 3),
    "StatefulUniformFullInt": _seven(2),
    "StatefulStandardNormalV2": _fill(_NORMAL, 2),
    "StatefulTruncatedNormal": _fill(_NORMAL, 2),
}
