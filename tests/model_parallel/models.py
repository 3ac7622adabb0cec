"""The models whose numbers are compared with one device."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

VOCABULARY, LENGTH, ROWS = 16, 8, 44  # batches of 16, 16 and 12: the last one divides by 4 alone


def mlp() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((12,)),
            keras.layers.Dense(32, "gelu"),
            keras.layers.Dense(16, "gelu"),
            keras.layers.Dense(4),
        ]
    )


def _block(x: Any, attention: Any) -> Any:
    h = keras.layers.LayerNormalization()(x)
    x = x + attention(h, h, use_causal_mask=True)
    h = keras.layers.LayerNormalization()(x)
    h = keras.layers.Dense(64, "gelu")(h)
    return x + keras.layers.Dense(16)(h)


def transformer(mask: bool = True, attention: Any = None) -> keras.Model:
    """Causal, with padding masked."""
    attention = attention or (lambda: keras.layers.MultiHeadAttention(4, 4))
    ids = keras.Input((LENGTH,), dtype="int32")
    x = keras.layers.Embedding(VOCABULARY, 16, mask_zero=mask)(ids)
    x = _block(x, attention())
    return keras.Model(ids, keras.layers.Dense(VOCABULARY)(keras.layers.LayerNormalization()(x)))


def grouped() -> keras.Model:
    """Four query heads share two heads of keys and values, which four devices cannot divide."""
    return transformer(
        mask=False, attention=lambda: keras.layers.GroupQueryAttention(4, 4, num_key_value_heads=2)
    )


def cnn() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(8, 3, activation="relu", padding="same"),
            keras.layers.BatchNormalization(),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(4),
        ]
    )


def data(name: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    if name == "mlp":
        return rng.normal(size=(ROWS, 12)).astype("float32"), rng.integers(0, 4, ROWS)
    if name == "cnn":
        return rng.normal(size=(ROWS, 8, 8, 3)).astype("float32"), rng.integers(0, 4, ROWS)
    ids = rng.integers(1, VOCABULARY, (ROWS, LENGTH))
    if name == "transformer":
        ids[np.arange(LENGTH) >= rng.integers(3, LENGTH + 1, ROWS)[:, None]] = 0
    return ids, np.roll(ids, -1, axis=1)


MODELS = {"mlp": mlp, "transformer": transformer, "grouped": grouped, "cnn": cnn}
# BatchNormalization amplifies rounding.
RTOL = {"cnn": 1e-4}


def train(name: str, scope: Any, epochs: int = 2) -> dict[str, Any]:
    """Trains a model of `MODELS` under `scope()`, shuffled, with a last batch that is smaller."""
    keras.utils.set_random_seed(5)
    with scope():
        model = MODELS[name]()
        # The bias of the keys has no gradient but rounding, which Adam alone would make as large
        # as any other; its epsilon is above that.
        model.compile(
            keras.optimizers.Adam(0.01, epsilon=1e-4),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
    started = [np.array(w) for w in model.get_weights()]
    x, y = data(name)
    history = model.fit(x, y, batch_size=16, epochs=epochs, verbose=0)
    return {
        "model": model,
        "initial": started,
        "losses": np.array(history.history["loss"]),
        "weights": model.get_weights(),
    }
