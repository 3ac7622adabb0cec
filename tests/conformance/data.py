"""The data that the table trains on: 42 rows, as users hand them to `fit`."""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np
import tensorflow as tf

ROWS, BATCH, FEATURES, CLASSES = 42, 16, 6, 3


@functools.cache
def rows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, FEATURES)).astype("float32")
    return x, rng.integers(0, CLASSES, ROWS)


def weights() -> np.ndarray:
    return np.linspace(0.1, 2.0, ROWS).astype("float32")


def arrays() -> dict[str, Any]:
    x, y = rows()
    return {"x": x, "y": y, "batch_size": BATCH}


def dataset() -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(rows())


def generator() -> Any:
    x, y = rows()
    while True:
        for start in range(0, ROWS, BATCH):
            yield x[start : start + BATCH], y[start : start + BATCH]


def finite_generator(batch: int = 6) -> Any:
    x, y = rows()
    for start in range(0, ROWS, batch):
        yield x[start : start + batch], y[start : start + batch]


class Pages(keras.utils.PyDataset):
    def __len__(self) -> int:
        return -(-ROWS // BATCH)

    def __getitem__(self, index: int) -> Any:
        x, y = rows()
        here = slice(index * BATCH, (index + 1) * BATCH)
        return x[here], y[here]


def without_option(first: int = ROWS) -> dict[str, Any]:
    x, y = rows()
    return {"x": {"a": x[:first], "b": None}, "y": y[:first], "batch_size": BATCH}


def generator_without_option() -> Any:
    for x, y in finite_generator(BATCH):
        yield {"a": x, "b": None}, y


def generator_without_weights() -> Any:
    for x, y in finite_generator(BATCH):
        yield x, y, None


def generator_without_targets() -> Any:
    for x, _ in finite_generator(BATCH):
        yield x, None


def dataset_without_option_and_weights() -> tf.data.Dataset:
    return dataset().batch(BATCH).map(lambda x, y: ({"b": None, "a": x}, y, None))


def one_huge_row() -> dict[str, Any]:
    x, y = rows()
    x = x.copy()
    x[3] = 1e6  # infinite in float16, in one batch of each epoch
    return {"x": x, "y": y, "batch_size": BATCH}


def images() -> dict[str, Any]:
    rng = np.random.default_rng(1)
    x = rng.integers(0, 256, (ROWS, 6, 6, 1)).astype("uint8")
    return {"x": x, "y": rows()[1], "batch_size": BATCH}


def tokens() -> dict[str, Any]:
    rng = np.random.default_rng(2)
    x = rng.integers(1, 9, (ROWS, 5))
    x[np.arange(5)[None] >= rng.integers(2, 6, ROWS)[:, None]] = 0  # padding
    return {"x": x, "y": rows()[1], "batch_size": BATCH}


def sequences() -> dict[str, Any]:
    x = tokens()["x"]
    return {"x": x, "y": (x + 1) % 9, "batch_size": BATCH}


def binary() -> dict[str, Any]:
    return {**arrays(), "y": (rows()[1] > 0).astype("float32")[:, None]}


def few() -> dict[str, Any]:
    x, y = rows()
    return {"x": x[:3], "y": y[:3], "batch_size": BATCH}


def lonely() -> dict[str, Any]:
    x, y = rows()
    return {"x": x[:33], "y": y[:33], "batch_size": BATCH}


def lonely_images() -> dict[str, Any]:
    return {**images(), "x": images()["x"][:33], "y": rows()[1][:33]}


def lonely_tokens() -> dict[str, Any]:
    return {**tokens(), "x": tokens()["x"][:33], "y": rows()[1][:33]}


def parts_of_two_sizes() -> dict[str, Any]:
    x, y = rows()
    free = tf.data.Dataset.from_tensor_slices(x).batch(12)
    labelled = tf.data.Dataset.from_tensor_slices((x[::3], y[::3])).batch(4)
    table = tf.data.Dataset.from_tensors(tf.constant([[0.5, 1.0, 2.0]])).repeat()
    return {"x": tf.data.Dataset.zip((free, labelled, table))}


def named() -> dict[str, Any]:
    x, y = rows()
    return {"x": {"a": x[:, :2], "b": x[:, 2:]}, "y": {"c": y, "d": x[:, 0]}, "batch_size": BATCH}
