"""Models that are planned, and built for real."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import layers


def mlp() -> keras.Model:
    """Four layers of 64 features; Adam."""
    hidden = [layers.Dense(64, activation="relu") for _ in range(4)]
    model = keras.Sequential([keras.Input((64,)), *hidden, layers.Dense(8)])
    return _compiled(model, "adam")


def deep() -> keras.Model:
    """Eight equal layers; Adam."""
    hidden = [layers.Dense(64, activation="relu") for _ in range(8)]
    return _compiled(keras.Sequential([keras.Input((64,)), *hidden, layers.Dense(8)]), "adam")


def odd() -> keras.Model:
    """Sizes that two devices cannot divide, and SGD with momentum."""
    model = keras.Sequential([keras.Input((7,)), layers.Dense(9, "relu"), layers.Dense(5)])
    return _compiled(model, keras.optimizers.SGD(0.1, momentum=0.9))


def cnn() -> keras.Model:
    """Convolutions, statistics without a gradient; Adafactor, whose slots are factors."""
    model = keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            layers.Conv2D(8, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(16, 3),
            layers.GlobalAveragePooling2D(),
            layers.Dropout(0.5),
            layers.Dense(8),
        ]
    )
    return _compiled(model, "adafactor")


def transformer() -> keras.Model:
    """One block over 16 tokens; Adam."""
    ids = keras.Input((16,), dtype="int32")
    x = layers.Embedding(64, 32)(ids)
    y = layers.LayerNormalization()(x)
    x = x + layers.MultiHeadAttention(4, 8)(y, y, use_causal_mask=True)
    y = layers.LayerNormalization()(x)
    x = x + layers.Dense(32)(layers.Dense(128, activation="gelu")(y))
    model = keras.Model(ids, layers.Dense(64)(x))
    return _compiled(model, "adam")


def accumulating() -> keras.Model:
    """An MLP whose optimizer accumulates gradients and clips them, and scales its loss."""
    model = mlp()
    inner = keras.optimizers.AdamW(gradient_accumulation_steps=2, global_clipnorm=1.0)
    return _compiled(model, keras.optimizers.LossScaleOptimizer(inner))


def _compiled(model: keras.Model, optimizer: Any) -> keras.Model:
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


BUILDERS: dict[str, Callable[[], keras.Model]] = {
    one.__name__: one for one in (mlp, odd, cnn, transformer, accumulating)
}
