"""Rows of the preprocessing layers, inside the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers as L  # noqa: N812

from tests.model_parallel.coverage.row import RANDOM, ROWS, Row, ids, reals, shares

G = "Preprocessing"


def _normalized() -> Any:
    layer = L.Normalization()
    layer.adapt(reals(300, seed=3, rows=4))
    return layer


def _lookup(mode: str = "int") -> Any:
    return L.IntegerLookup(vocabulary=[3, 1, 4, 9], output_mode=mode)


def _of_reals(name: str, make: Callable[[], Any], features: int = 6, **more: Any) -> Row:
    def model() -> keras.Model:
        inputs = keras.Input((features,))
        x = make()(inputs)
        x = L.Lambda(lambda x: keras.ops.cast(x, "float32"))(x)
        return keras.Model(inputs, L.Dense(2)(L.Flatten()(x)))

    return Row(
        name, G, model, lambda: (reals(features), reals(2, seed=1)), rate=0.1 / features, **more
    )


def _of_ids(name: str, make: Callable[[], Any], **more: Any) -> Row:
    def model() -> keras.Model:
        inputs = keras.Input((6,), dtype="int32")
        x = make()(inputs)
        x = L.Lambda(lambda x: keras.ops.cast(x, "float32"))(x)
        return keras.Model(inputs, L.Dense(2)(L.Flatten()(x)))

    return Row(name, G, model, lambda: (ids(10, 6), reals(2, seed=1)), rate=0.02, **more)


def _crossing() -> keras.Model:
    inputs = [keras.Input((1,), dtype="int32"), keras.Input((1,), dtype="int32")]
    x = L.HashedCrossing(16, output_mode="one_hot")(inputs)
    return keras.Model(inputs, L.Dense(2)(x))


def _of_images(name: str, make: Callable[[], Any], **more: Any) -> Row:
    def model() -> keras.Model:
        inputs = keras.Input((8, 8, 3))
        x = make()(inputs)
        return keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling2D()(L.Conv2D(4, 3)(x))))

    def data() -> tuple[Any, Any]:
        return shares(8, 8, 3), reals(2, seed=1)

    return Row(name, G, model, data, **more)


def _of_sound(name: str, make: Callable[[], Any]) -> Row:
    def model() -> keras.Model:
        inputs = keras.Input((64,))
        return keras.Model(inputs, L.Dense(2)(L.Flatten()(make()(inputs))))

    return Row(name, G, model, lambda: (reals(64), reals(2, seed=1)), rate=0.01)


def _as_channel(layer: Any) -> Callable[[Any], Any]:
    return lambda x: layer(L.Reshape((64, 1))(x))


def _of_strings(name: str, make: Callable[[], Any]) -> Row:
    def model() -> keras.Model:
        inputs = keras.Input((1,), dtype="string")
        x = L.Lambda(lambda x: keras.ops.cast(x, "float32"))(make()(inputs))
        return keras.Model(inputs, L.Dense(2)(L.Flatten()(x)))

    def data() -> tuple[Any, Any]:
        words = np.array([["a"], ["b"], ["c"]])[np.arange(ROWS) % 3]
        return words, reals(2, seed=1)

    return Row(name, G, model, data)


def rows() -> list[Row]:
    """Draws of augmentation differ from one device's; what they do at inference is the same."""
    unit: dict[str, Any] = {"value_range": (0, 1)}
    made = [
        _of_reals("Rescaling", lambda: L.Rescaling(2.0, 1.0)),
        _of_reals("Normalization", lambda: L.Normalization(mean=[0.5] * 6, variance=[2.0] * 6)),
        _of_reals("Normalization adapted", _normalized, 300),
        _of_reals("Discretization", lambda: L.Discretization([-1.0, 0.0, 1.0])),
        _of_reals(
            "Discretization one_hot", lambda: L.Discretization([-1.0, 0.0], output_mode="one_hot")
        ),
        _of_ids("CategoryEncoding multi_hot", lambda: L.CategoryEncoding(10)),
        _of_ids("CategoryEncoding one_hot", lambda: L.CategoryEncoding(10, "one_hot")),
        _of_ids("CategoryEncoding count", lambda: L.CategoryEncoding(10, "count")),
        _of_ids("Hashing", lambda: L.Hashing(5)),
        _of_ids("Hashing with salt", lambda: L.Hashing(5, salt=133)),
        _of_ids("IntegerLookup", _lookup),
        _of_ids("IntegerLookup multi_hot", lambda: _lookup("multi_hot")),
        Row(
            "HashedCrossing",
            G,
            _crossing,
            lambda: ((ids(10, 1), ids(10, 1, seed=2)), reals(2, seed=1)),
        ),
        _of_images("Resizing", lambda: L.Resizing(6, 5)),
        _of_images("Resizing nearest", lambda: L.Resizing(6, 5, "nearest")),
        _of_images("Resizing bicubic", lambda: L.Resizing(6, 5, "bicubic")),
        _of_images("CenterCrop", lambda: L.CenterCrop(6, 5)),
        _of_images("AutoContrast", lambda: L.AutoContrast(**unit)),
        _of_images("Equalization", lambda: L.Equalization(**unit)),
        _of_images(
            "ContrastLimitedAdaptiveHistogramEqualization",
            lambda: L.ContrastLimitedAdaptiveHistogramEqualization((0, 1), tile_grid_size=(2, 2)),
        ),
        _of_sound("STFTSpectrogram", lambda: _as_channel(L.STFTSpectrogram(frame_length=16))),
        _of_sound(
            "MelSpectrogram", lambda: L.MelSpectrogram(16, 8, sampling_rate=100, num_mel_bins=4)
        ),
        _of_strings("StringLookup", lambda: L.StringLookup(vocabulary=["a", "b"])),
        _of_strings(
            "TextVectorization",
            lambda: L.TextVectorization(vocabulary=["a", "b"], output_sequence_length=2),
        ),
        _of_strings("Hashing of strings", lambda: L.Hashing(5)),
    ]
    drawn: dict[str, Callable[[], Any]] = {
        "AugMix": lambda: L.AugMix(**unit),
        "CutMix": L.CutMix,
        "MixUp": L.MixUp,
        "RandAugment": lambda: L.RandAugment(**unit),
        "RandomBrightness": lambda: L.RandomBrightness(0.2, **unit),
        "RandomColorDegeneration": lambda: L.RandomColorDegeneration(0.5, **unit),
        "RandomColorJitter": lambda: L.RandomColorJitter((0, 1), 0.2, 0.2, 0.2, 0.2),
        "RandomContrast": lambda: L.RandomContrast(0.2, **unit),
        "RandomCrop": lambda: L.RandomCrop(6, 6),
        "RandomElasticTransform": lambda: L.RandomElasticTransform(**unit),
        "RandomErasing": lambda: L.RandomErasing(**unit),
        "RandomFlip": L.RandomFlip,
        "RandomGaussianBlur": lambda: L.RandomGaussianBlur(**unit),
        "RandomGrayscale": L.RandomGrayscale,
        "RandomHue": lambda: L.RandomHue(0.2, **unit),
        "RandomInvert": lambda: L.RandomInvert(**unit),
        "RandomPerspective": L.RandomPerspective,
        "RandomPosterization": lambda: L.RandomPosterization(4, **unit),
        "RandomRotation": lambda: L.RandomRotation(0.2),
        "RandomSaturation": lambda: L.RandomSaturation(0.2, **unit),
        "RandomSharpness": lambda: L.RandomSharpness(0.2, **unit),
        "RandomShear": lambda: L.RandomShear(0.2, 0.2),
        "RandomTranslation": lambda: L.RandomTranslation(0.2, 0.2),
        "RandomZoom": lambda: L.RandomZoom(0.2),
        "Solarization": lambda: L.Solarization(0.2, 0.2, **unit),
    }
    return made + [_of_images(name, make, compared=RANDOM) for name, make in drawn.items()]
