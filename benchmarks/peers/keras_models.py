"""The three models in Keras."""

from __future__ import annotations

import keras
from keras import layers

from peers import work


def build(name: str) -> keras.Model:
    """One of them, with the weights that every library starts from."""
    model = _BUILD[name]()
    model.set_weights(work.weights(name))
    return model


def _mlp() -> keras.Model:
    hidden = [layers.Dense(width, "relu") for width in work.MLP[1:-1]]
    return keras.Sequential([keras.Input((work.MLP[0],)), *hidden, layers.Dense(work.MLP[-1])])


def _cnn() -> keras.Model:
    model = keras.Sequential([keras.Input((work.IMAGE, work.IMAGE, 3))])
    for i, (_, channels) in enumerate(work.CONVOLUTIONS):
        model.add(layers.Conv2D(channels, 3, padding="same", activation="relu"))
        if i % 2:
            model.add(layers.MaxPooling2D())
    model.add(layers.Flatten())
    model.add(layers.Dense(work.CLASSES))
    return model


def _transformer() -> keras.Model:
    tokens = keras.Input((work.SEQUENCE,), dtype="int32")
    x = layers.Embedding(work.VOCABULARY, work.WIDTH)(tokens)
    for _ in range(work.LAYERS):
        near = layers.LayerNormalization()(x)
        attend = layers.MultiHeadAttention(work.HEADS, work.WIDTH // work.HEADS)
        x = layers.Add()([x, attend(near, near, use_causal_mask=True)])
        near = layers.LayerNormalization()(x)
        near = layers.Dense(4 * work.WIDTH, "gelu")(near)
        x = layers.Add()([x, layers.Dense(work.WIDTH)(near)])
    return keras.Model(tokens, layers.Dense(work.VOCABULARY)(layers.LayerNormalization()(x)))


_BUILD = {"mlp": _mlp, "cnn": _cnn, "transformer": _transformer}
