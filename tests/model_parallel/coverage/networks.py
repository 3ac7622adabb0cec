"""Rows of whole networks: keras.applications at small inputs, backbones of keras_hub."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import layers as L  # noqa: N812

from tests.model_parallel.coverage.row import Row, ids, padded, reals

CLASSES = 8


def _classes() -> Any:
    return ids(CLASSES, seed=1)


def _application(name: str, size: int, **more: Any) -> Row:
    def model() -> keras.Model:
        make = getattr(keras.applications, name)
        made = make(weights=None, classes=CLASSES, input_shape=(size, size, 3))
        for layer in made.layers:
            if isinstance(layer, L.Dropout):
                layer.rate = 0  # draws differ from one device's
        return made

    def data() -> tuple[Any, Any]:
        return reals(size, size, 3) * 50 + 100, _classes()

    return Row(
        name,
        "keras.applications",
        model,
        data,
        "sparse_categorical_crossentropy",
        **{"floatx": "float64", "rate": 0.001, **more},
    )


def _backbone(name: str, make: Callable[[Any], Any], data: Callable[[], Any], **more: Any) -> Row:
    def model() -> keras.Model:
        import keras_hub

        backbone = make(keras_hub.models)
        x = backbone.output
        if isinstance(x, dict):
            x = x.get("sequence_output", x.get("decoder_sequence_output"))
        return keras.Model(backbone.input, L.Dense(CLASSES)(x))

    def both() -> tuple[Any, Any]:
        x = data()
        y = ids(CLASSES, 6, seed=1) if isinstance(x, dict) else ids(CLASSES, 5, seed=1)
        return x, y

    cross = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return Row(name, "keras_hub", model, both, cross, rate=0.02, package="keras_hub", **more)


def _text() -> Any:
    x = padded(16, 6)
    return {"token_ids": x, "padding_mask": (x != 0).astype("int32")}


def _bert_text() -> Any:
    return {**_text(), "segment_ids": ids(2, 6, seed=2)}


def _two_texts() -> Any:
    one, two = padded(16, 6), ids(16, 6, seed=3, first=1)
    return {
        "encoder_token_ids": one,
        "encoder_padding_mask": (one != 0).astype("int32"),
        "decoder_token_ids": two,
        "decoder_padding_mask": (two != 0).astype("int32"),
    }


def rows() -> list[Row]:
    width: dict[str, Any] = {"hidden_dim": 8, "intermediate_dim": 16, "dropout": 0.0}
    size: dict[str, Any] = {"vocabulary_size": 16, "num_layers": 2}

    def gemma(heads: int) -> Callable[[Any], Any]:
        return lambda m: m.GemmaBackbone(
            **size,
            num_query_heads=4,
            num_key_value_heads=heads,
            hidden_dim=8,
            intermediate_dim=32,
            head_dim=4,
        )

    return [
        _application("ResNet50", 32),
        _application("MobileNetV2", 32),
        _application("EfficientNetB0", 32),
        _application("ConvNeXtTiny", 32, floatx="float32"),
        _backbone(
            "GPT2Backbone",
            lambda m: m.GPT2Backbone(**size, **width, num_heads=2, max_sequence_length=8),
            _text,
        ),
        _backbone(
            "BertBackbone",
            lambda m: m.BertBackbone(**size, **width, num_heads=2, max_sequence_length=8),
            _bert_text,
        ),
        _backbone(
            "LlamaBackbone",
            lambda m: m.LlamaBackbone(
                **size,
                num_query_heads=4,
                num_key_value_heads=2,
                hidden_dim=16,
                intermediate_dim=16,
            ),
            _text,
        ),
        _backbone("GemmaBackbone", gemma(4), _text, floatx="float64"),
        _backbone("GemmaBackbone of one key head", gemma(1), _text, floatx="float64"),
        _backbone(
            "ViTBackbone",
            lambda m: m.ViTBackbone(
                image_shape=(8, 8, 3),
                patch_size=4,
                num_layers=2,
                num_heads=2,
                hidden_dim=8,
                mlp_dim=16,
            ),
            lambda: reals(8, 8, 3),
            floatx="float64",
        ),
        _backbone(
            "T5Backbone",
            lambda m: m.T5Backbone(**size, **width, num_heads=2),
            _two_texts,
        ),
    ]
