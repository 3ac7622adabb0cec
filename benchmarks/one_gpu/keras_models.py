"""The two models, in Keras's own layers and for any of its backends."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers

from one_gpu.task import RATE, Task


def build(task: Task) -> keras.Model:
    """Not yet compiled; the dtype policy is the global one."""
    return _resnet(task) if task.model == "resnet50" else _decoder(task)


def optimizer(task: Task) -> keras.optimizers.Optimizer:
    return keras.optimizers.AdamW(RATE[task.model])


def batch(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """One batch of noise: images as bytes, or tokens and those that follow them."""
    s, rng = task.sizes, np.random.default_rng(0)
    if task.model == "resnet50":
        images = rng.integers(0, 256, (s.batch, s.image, s.image, 3), dtype=np.uint8)
        return images, rng.integers(0, s.classes, s.batch, dtype=np.int32)
    tokens = rng.integers(0, s.vocabulary, (s.batch, s.sequence + 1), dtype=np.int32)
    return tokens[:, :-1].copy(), tokens[:, 1:].copy()


def _resnet(task: Task) -> keras.Model:
    s = task.sizes
    images = keras.Input((s.image, s.image, 3), dtype="uint8")
    x = layers.Rescaling(1 / 127.5, -1.0)(images)
    network = keras.applications.ResNet50(
        weights=None,
        input_tensor=x,
        classes=s.classes,
        classifier_activation=None,
    )
    return keras.Model(images, network.output)


class Places(layers.Layer):
    """Adds to each token what is learned of its place."""

    def build(self, shape: Any) -> None:
        self.table = self.add_weight(shape=shape[1:], initializer="uniform", name="table")

    def call(self, x: Any) -> Any:
        return x + self.table


def _decoder(task: Task) -> keras.Model:
    s = task.sizes
    tokens = keras.Input((s.sequence,), dtype="int32")
    x = Places()(layers.Embedding(s.vocabulary, s.width)(tokens))
    for _ in range(s.layers):
        y = layers.LayerNormalization(epsilon=1e-5)(x)
        attend = layers.MultiHeadAttention(s.heads, s.width // s.heads)
        x = x + attend(y, y, use_causal_mask=True)
        y = layers.LayerNormalization(epsilon=1e-5)(x)
        y = layers.Dense(4 * s.width)(y)
        y = layers.Activation(lambda z: keras.activations.gelu(z, approximate=True))(y)
        x = x + layers.Dense(s.width)(y)
    x = layers.LayerNormalization(epsilon=1e-5)(x)
    return keras.Model(tokens, layers.Dense(s.vocabulary, use_bias=False)(x))
