"""What a worker runs: the runs of tests/checkpoint, with the networks of the examples and Grain.

    python -m tests.survival.run OUT --data Grain --model transformer --strategy STRATEGY

Leaves ``compiling-RANK`` in OUT when it begins to make its train function.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import keras
from keras import layers, ops

from tests.checkpoint import run
from tests.checkpoint.data import BATCH, DATA, rows
from tests.checkpoint.models import MODELS, RowNumbers


def digits() -> keras.Model:
    """The network of examples/digits.py."""
    inputs = keras.Input((6,))
    x = layers.Reshape((8, 8, 1))(layers.Dense(64)(inputs))
    for filters in (32, 64):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
    x = layers.Dropout(0.25)(layers.Flatten()(layers.MaxPooling2D()(x)))
    return _compiled(inputs, layers.Dense(64, "relu")(x))


def transformer() -> keras.Model:
    """A block of a transformer, with dropout where those have it."""
    inputs = keras.Input((6,))
    x = layers.Dropout(0.1)(layers.Dense(16)(ops.expand_dims(inputs, -1)))
    attended = layers.MultiHeadAttention(2, 8, dropout=0.1)(x, x)
    x = layers.LayerNormalization()(x + layers.Dropout(0.1)(attended))
    inner = layers.Dense(16)(layers.Dense(32, "gelu")(x))
    x = layers.LayerNormalization()(x + layers.Dropout(0.1)(inner))
    return _compiled(inputs, layers.Flatten()(x))


def _compiled(inputs: Any, x: Any) -> keras.Model:
    model = keras.Model(inputs, layers.Concatenate()([layers.Dense(2)(x), inputs[:, :1]]))
    model.compile(
        keras.optimizers.Adam(0.01, weight_decay=0.01),
        lambda y, p: ops.mean((y - p[:, :2]) ** 2, -1),
        metrics=[RowNumbers()],
    )
    return model


def grain() -> dict[str, Any]:
    """Rows of a Grain loader."""
    from grain import MapDataset

    x, y = rows()
    pairs = [(x[i], y[i]) for i in range(len(x))]
    return {"x": MapDataset.source(pairs).shuffle(seed=3).batch(BATCH)}


def main() -> None:
    MODELS.update(digits=digits, transformer=transformer)
    DATA["Grain"] = grain
    rank = json.loads(os.environ.get("TF_CONFIG", "{}")).get("task", {}).get("index", 0)
    run.Seen.pace_s = 0.05  # else what happens to a run comes after its end
    begins = Path(sys.argv[1], f"compiling-{rank}")
    plain = keras.Model.make_train_function

    def make_train_function(model: keras.Model, force: bool = False) -> Any:
        begins.touch()
        return plain(model, force)

    with mock.patch.object(keras.Model, "make_train_function", make_train_function):
        run.main()


if __name__ == "__main__":
    main()
