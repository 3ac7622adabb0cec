"""Constants in place of random operations, for comparing steps.

Two runs of a step over the same rows, one of them in parts, draw different numbers for each row.
While this is active, traces have a constant in place of each draw.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tfaccel.distribute import _private

_UNIFORM, _NORMAL = 0.9, 0.6  # Dropout keeps units up to that rate


class UnknownRandomOpError(Exception):
    """A random operation whose result is unknown."""


@contextlib.contextmanager
def constant_random_ops() -> Iterator[list[str]]:
    """Makes random operations return constants in graphs traced meanwhile.

    Returns:
        The types of those operations, in the order traced.
    """
    replaced: list[str] = []

    def replace(op: Any) -> list[tf.Tensor] | None:
        outputs = constants(op)
        if outputs is not None:
            replaced.append(op.type)
        return outputs

    with _private.operations_replaced(replace):
        yield replaced


def constants(op: Any) -> list[tf.Tensor] | None:
    """Replacements for the outputs of an operation; None to keep them.

    Raises:
        UnknownRandomOpError: for a random operation whose result is unknown.
    """
    if op.type == "RandomShuffle":
        return [tf.identity(op.inputs[0])]
    if (number := constant_number(op)) is None:
        return None
    if "Multinomial" in op.type:
        return [tf.fill([tf.shape(op.inputs[0])[0], op.inputs[1]], number)]
    return [tf.fill(op.inputs[_SHAPES.get(op.type, 0)], number)]


def constant_number(op: Any) -> tf.Tensor | None:
    """The constant for a random operation; None for an operation of another kind.

    Raises:
        UnknownRandomOpError: as `constants`.
    """
    if (draw := _CONSTANTS.get(op.type)) is not None:
        return draw(op)
    if any(word in op.type for word in ("Random", "Multinomial", "TruncatedNormal", "SampleDist")):
        if op.type in ("RandomShuffle", "StatelessRandomGetAlg", "RandomDataset"):
            return None
        if op.type.startswith("StatelessRandomGetKeyCounter"):
            return None
        raise UnknownRandomOpError(op.type)
    return None


def _number(value: float) -> Callable[[Any], tf.Tensor]:
    return lambda op: tf.cast(value, op.outputs[0].dtype)


def _middle(low: int) -> Callable[[Any], tf.Tensor]:
    def draw(op: Any) -> tf.Tensor:
        least, most = op.inputs[low], op.inputs[low + 1]
        return least + (most - least) // 2

    return draw


_uniform, _normal, _seven, _class = map(_number, (_UNIFORM, _NORMAL, 7, 0))

_CONSTANTS: dict[str, Callable[[Any], tf.Tensor]] = {
    "RandomUniform": _uniform,
    "RandomUniformInt": _middle(1),
    "RandomStandardNormal": _normal,
    "TruncatedNormal": _normal,
    "Multinomial": _class,
    "StatelessMultinomial": _class,
    "StatelessRandomUniform": _uniform,
    "StatelessRandomUniformV2": _uniform,
    "StatelessRandomUniformInt": _middle(2),
    "StatelessRandomUniformIntV2": _middle(4),
    "StatelessRandomUniformFullInt": _seven,
    "StatelessRandomUniformFullIntV2": _seven,
    "StatelessRandomNormal": _normal,
    "StatelessRandomNormalV2": _normal,
    "StatelessTruncatedNormal": _normal,
    "StatelessTruncatedNormalV2": _normal,
    "StatefulUniform": _uniform,
    "StatefulUniformInt": _middle(3),
    "StatefulUniformFullInt": _seven,
    "StatefulStandardNormalV2": _normal,
    "StatefulTruncatedNormal": _normal,
}
# Which input is the shape, if not the first.
_SHAPES = {name: 2 for name in _CONSTANTS if name.startswith("Stateful")}
