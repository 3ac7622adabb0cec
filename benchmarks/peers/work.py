"""What is trained: three models as shapes, their first weights and their data, in NumPy alone.

Every library starts from these weights and sees these batches, so that losses can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

BATCH = {"mlp": 64, "cnn": 32, "transformer": 8}
"""Rows a worker and step."""

MLP = (784, 2048, 2048, 10)
CONVOLUTIONS = ((3, 32), (32, 32), (32, 64), (64, 64))
"""Channels in and out, 3x3; the image is halved after each second one."""
IMAGE, CLASSES = 32, 10
FLAT = (IMAGE // 4) ** 2 * CONVOLUTIONS[-1][1]
LAYERS, WIDTH, HEADS, SEQUENCE, VOCABULARY = 4, 256, 4, 128, 1024


@dataclass(frozen=True)
class Task:
    """What one worker is asked to do."""

    model: str
    library: str
    communication: str
    wire: str
    tuned: bool
    workers: int
    rank: int
    core: int
    steps: int
    epochs: int

    @property
    def batch(self) -> int:
        """Rows of this worker in a step."""
        return BATCH[self.model]

    @property
    def global_batch(self) -> int:
        """Rows of all workers in a step."""
        return self.batch * self.workers


def weights(model: str) -> list[Array]:
    """The first weights, in the order and with the shapes of `keras.Model.get_weights`."""
    return [w.astype("float32") for w in _WEIGHTS[model](np.random.default_rng(0))]


@cache
def parameters(model: str) -> int:
    """How many numbers are trained."""
    return sum(w.size for w in weights(model))


def data(task: Task) -> tuple[Array, Array]:
    """Inputs and labels of an epoch of all workers; there is something in them to learn."""
    rng = np.random.default_rng(1)
    rows = task.steps * task.global_batch
    if task.model == "transformer":
        tokens = rng.integers(0, VOCABULARY, (rows, SEQUENCE + 1))
        follows = rng.permutation(VOCABULARY)
        known = rng.random(tokens.shape) < 0.75
        for i in range(SEQUENCE):
            tokens[:, i + 1] = np.where(known[:, i], follows[tokens[:, i]], tokens[:, i + 1])
        tokens = tokens.astype("int32")
        return tokens[:, :-1], tokens[:, 1:]
    if task.model == "mlp":
        x = rng.standard_normal((rows, MLP[0]), "float32")
        seen = x
    else:
        x = rng.standard_normal((rows, IMAGE, IMAGE, 3), "float32")
        seen = x.reshape(rows, 4, IMAGE // 4, 4, IMAGE // 4, 3).mean((2, 4)).reshape(rows, -1)
    teacher = rng.standard_normal((seen.shape[1], CLASSES), "float32")
    return x, (seen @ teacher).argmax(1).astype("int32")


def _glorot(rng: np.random.Generator, *shape: int, fans: int) -> Array:
    """Keras's default for kernels; `fans` is fan in and fan out together."""
    limit = math.sqrt(6 / fans)
    return rng.uniform(-limit, limit, shape)


def _dense(rng: np.random.Generator, fan_in: int, fan_out: int) -> Iterator[Array]:
    yield _glorot(rng, fan_in, fan_out, fans=fan_in + fan_out)
    yield np.zeros(fan_out)


def _mlp(rng: np.random.Generator) -> Iterator[Array]:
    for fan_in, fan_out in pairwise(MLP):
        yield from _dense(rng, fan_in, fan_out)


def _cnn(rng: np.random.Generator) -> Iterator[Array]:
    for fan_in, fan_out in CONVOLUTIONS:
        yield _glorot(rng, 3, 3, fan_in, fan_out, fans=9 * (fan_in + fan_out))
        yield np.zeros(fan_out)
    yield from _dense(rng, FLAT, CLASSES)


def _transformer(rng: np.random.Generator) -> Iterator[Array]:
    norm = np.ones(WIDTH), np.zeros(WIDTH)
    heads = HEADS, WIDTH // HEADS
    yield rng.uniform(-0.05, 0.05, (VOCABULARY, WIDTH))
    for _ in range(LAYERS):
        yield from norm
        for _ in ("query", "key", "value"):
            yield _glorot(rng, WIDTH, *heads, fans=2 * WIDTH)
            yield np.zeros(heads)
        yield _glorot(rng, *heads, WIDTH, fans=2 * WIDTH)
        yield np.zeros(WIDTH)
        yield from norm
        yield from _dense(rng, WIDTH, 4 * WIDTH)
        yield from _dense(rng, 4 * WIDTH, WIDTH)
    yield from norm
    yield from _dense(rng, WIDTH, VOCABULARY)


_WEIGHTS = {"mlp": _mlp, "cnn": _cnn, "transformer": _transformer}
