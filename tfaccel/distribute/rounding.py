"""How far rounding alone can change a step, to distinguish a wrong number from a rounded one.

The float32 result of a step is the exact result for slightly perturbed inputs: the backward error.
For a sum of n terms, in whatever order they are added, the perturbation is about sqrt(n) u, where u
is half of the last digit (Higham and Mary, A new approach to probabilistic rounding error analysis,
SIAM J. Sci. Comput. 41, 2019). So the step is taken in float64 from inputs perturbed by as much, at
random, a few times.

A step is not smooth everywhere. Of the two hundred thousand activations of a batch one may be 1e-6
from the kink of a ReLU: its side depends on rounding, and whether a gradient passes there changes
all earlier layers by a hundredth. One device in float32 shows only those of its own order of sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tfaccel.distribute.differences import Difference, differences, distances
from tfaccel.distribute.step_result import StepResult

TIMES = 3.0  # how much another order of sums may exceed one device's rounding
_HALF_A_DIGIT = 2.0**-24  # of float32


class Rounding:
    """The rounding error of one step.

    Args:
        exact: the step in float64.
        tolerance: relative, of the norm of each tensor.
    """

    def __init__(self, exact: StepResult, tolerance: float) -> None:
        self._exact, self._tolerance = exact, tolerance
        self._moved: dict[tuple[str, str], float] = {}

    def add(self, result: StepResult, times: float = 1.0) -> None:
        """Allows `times` the rounding error of `result`."""
        for key, distance in distances(result, self._exact).items():
            self._moved[key] = max(times * distance, self._moved.get(key, 0.0))

    def exceeded_by(self, result: StepResult) -> list[Difference]:
        """The values of `result` farther from the float64 step than rounding explains."""
        return [
            found
            for found in differences(result, self._exact, self._tolerance)
            if found.distance > self._moved.get((found.kind, found.what), 0.0)
        ]


def beyond_rounding(
    result: StepResult,
    reference: StepResult,
    exact: StepResult,
    others: Iterator[StepResult],
    tolerance: float,
) -> list[Difference]:
    """The differences of a step that rounding does not explain.

    Args:
        result: of the step as it will be taken.
        reference: of one device.
        exact: of one device in float64.
        others: the same from randomly perturbed inputs; drawn as long as something is unexplained.
        tolerance: relative, of the norm of each tensor.
    """
    rounding = Rounding(exact, tolerance)
    rounding.add(reference, TIMES)
    nearly = 1 + 5 * tolerance  # two steps on the same sides of all corners differ a little too
    while exceeded := rounding.exceeded_by(result):
        other = next(others, None)
        if other is None:
            break
        rounding.add(other, nearly)
    return exceeded


def backward_error(graph: Any, rows: int) -> float:
    """The relative perturbation by rounding in a step.

    Args:
        graph: of the step.
        rows: of a batch, if the graph does not know it.

    >>> with tf.Graph().as_default() as graph:
    ...     _ = tf.matmul(tf.zeros([4, 64]), tf.zeros([64, 2]))
    >>> backward_error(graph, 4) == 8 * 2.0**-24
    True
    """
    shapes = [t.shape for op in graph.get_operations() for t in op.outputs if t.dtype.is_floating]
    return math.sqrt(max((_terms(shape, rows) for shape in shapes), default=1)) * _HALF_A_DIGIT


def _terms(shape: tf.TensorShape, rows: int) -> int:
    """How many elements of a tensor may be summed: those of a channel, or all channels."""
    if not shape.rank:
        return 1
    sizes = [rows if size is None else int(size) for size in shape]
    return max(1, sizes[-1], math.prod(sizes[:-1]))


def moved_at_random(size: float, seed: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """A function that perturbs a tensor; integers are unchanged, as they are not rounded.

    Args:
        size: relative.
        seed: of the perturbation.
    """
    generator = tf.random.Generator.from_seed(seed)

    def moved(value: tf.Tensor) -> tf.Tensor:
        up = generator.uniform(tf.shape(value)) < 0.5
        size_of_each = tf.cast(tf.where(up, size, -size), value.dtype)
        return tf.where(value == tf.math.rint(value), value, value * (1.0 + size_of_each))

    return moved
