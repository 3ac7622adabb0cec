"""What a run trains on, in every form that `fit` takes; the first number of a row is its own."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

ROWS, BATCH = 44, 8  # the last batch of an epoch has 4 rows


def rows(number: int = ROWS) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    x = rng.normal(size=(number, 6)).astype("float32")
    x[:, 0] = np.arange(number)
    return x, rng.normal(size=(number, 2)).astype("float32")


class Rows(keras.utils.PyDataset):
    """Orders its rows anew after each epoch, by NumPy's generator or one of its own."""

    def __init__(self, rng: Any = None, workers: int = 1) -> None:
        super().__init__(workers=workers)
        self.x, self.y = rows()
        self.order, self.rng = np.arange(ROWS), rng

    def __len__(self) -> int:
        return -(-ROWS // BATCH)

    def __getitem__(self, i: int) -> Any:
        chosen = self.order[i * BATCH : (i + 1) * BATCH]
        return self.x[chosen], self.y[chosen]

    def on_epoch_end(self) -> None:
        (self.rng or np.random).shuffle(self.order)


def _dataset() -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(rows())


def _noisy(x: Any, y: Any) -> Any:
    return tf.concat([x[:1], x[1:] + tf.random.normal([5], seed=4)], 0), y


def _generator_of_noise() -> Any:
    generator = tf.random.Generator.from_seed(5)

    def noisy(x: Any, y: Any) -> Any:
        drawn = tf.random.stateless_normal([5], generator.make_seeds(2)[0])
        return tf.concat([x[:1], x[1:] + drawn], 0), y

    return noisy


def _generator() -> Iterator[Any]:
    x, y = rows()
    order = random.Random(5)
    while True:
        chosen = order.sample(range(ROWS), BATCH)
        yield x[chosen], y[chosen]


def _grain() -> Any:
    from grain import MapDataset

    x, y = rows()
    return MapDataset.source([(x[i], y[i]) for i in range(ROWS)]).shuffle(seed=3)


def _grain_loader() -> Any:
    import grain

    x, y = rows()
    return grain.DataLoader(
        data_source=[(x[i], y[i]) for i in range(ROWS)],
        sampler=grain.samplers.IndexSampler(ROWS, num_epochs=1, shuffle=True, seed=3),
        operations=[grain.transforms.Batch(BATCH)],
    )


DATA: dict[str, Callable[[], dict[str, Any]]] = {
    "arrays": lambda: dict(zip("xy", rows(), strict=True), batch_size=BATCH),
    "shuffled by batch": lambda: DATA["arrays"]() | {"shuffle": "batch"},
    "tf.data": lambda: {"x": _dataset().shuffle(64).batch(BATCH).prefetch(2)},
    "tf.data with a seed": lambda: {"x": _dataset().shuffle(16, seed=3).batch(BATCH)},
    "tf.data that draws": lambda: {"x": _dataset().shuffle(16).map(_noisy).batch(BATCH)},
    "tf.data with a cache": lambda: {"x": _dataset().shuffle(64, seed=3).cache().batch(BATCH)},
    "tf.data of two parts": lambda: {
        "x": _dataset().shuffle(64).concatenate(_dataset().shuffle(64)).batch(BATCH)
    },
    "tf.data with a generator": lambda: {"x": _dataset().map(_generator_of_noise()).batch(BATCH)},
    "tf.data of unknown length": lambda: {
        "x": _dataset().shuffle(16).filter(lambda x, y: x[0] < 40.0).batch(BATCH)
    },
    "tf.data in other batches": lambda: {
        "x": _dataset().shuffle(64, seed=3).batch(4).rebatch(BATCH)  # of unknown number
    },
    "tf.data that repeats": lambda: {
        "x": _dataset().shuffle(16).repeat().batch(BATCH),
        "steps_per_epoch": 6,
    },
    "PyDataset": lambda: {"x": Rows()},
    "PyDataset with threads": lambda: {"x": Rows(workers=2)},
    "PyDataset with a generator": lambda: {"x": Rows(np.random.default_rng(3))},
    "Grain": lambda: {"x": _grain().batch(BATCH)},
    "Grain in sequence": lambda: {"x": _grain().to_iter_dataset().batch(BATCH)},
    "Grain's loader": lambda: {"x": _grain_loader()},
    "a generator": lambda: {"x": _generator(), "steps_per_epoch": 6},
}
