"""Rows of the layers that work on sequences: attention and recurrence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import layers as L  # noqa: N812

from tests.model_parallel.coverage.layers import LINE, PLANE, SPACE, of_tokens, row
from tests.model_parallel.coverage.row import Row, ids, padded, reals


def rows() -> list[Row]:
    return [*_attention(), *_recurrent()]


def _attention() -> list[Row]:
    g = "Attention"

    def own(make: Callable[[Any], Any]) -> Callable[[], Any]:
        def model() -> keras.Model:
            inputs = keras.Input((6, 8))
            x = make(L.Dense(8)(inputs))
            return keras.Model(inputs, L.Dense(2)(L.Flatten()(x)))

        return model

    def masked(make: Callable[[Any], Any]) -> Callable[[], Any]:
        def model() -> keras.Model:
            inputs = keras.Input((6,), dtype="int32")
            x = make(L.Embedding(12, 8, mask_zero=True)(inputs))
            return keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling1D()(x)))

        return model

    def given() -> keras.Model:
        inputs = keras.Input((6, 8))
        mask = keras.Input((6, 6), dtype="bool")
        x = L.MultiHeadAttention(2, 4)(inputs, inputs, attention_mask=mask)
        return keras.Model([inputs, mask], L.Dense(2)(L.Flatten()(x)))

    def crossed() -> keras.Model:
        inputs = keras.Input((6, 8))
        memory = L.Dense(8)(L.Cropping1D((0, 2))(inputs))
        x = L.MultiHeadAttention(2, 4)(inputs, memory)
        return keras.Model(inputs, L.Dense(2)(L.Flatten()(x)))

    def data() -> tuple[Any, Any]:
        return reals(6, 8), reals(2, seed=1)

    def with_mask() -> tuple[Any, Any]:
        mask = (ids(2, 6, 6) == 1) | (keras.ops.convert_to_numpy(keras.ops.eye(6)) == 1)
        return (reals(6, 8), mask), reals(2, seed=1)

    def of_ids() -> tuple[Any, Any]:
        return padded(12, 6), reals(2, seed=1)

    def mha(**more: Any) -> Callable[[Any], Any]:
        return lambda x: L.MultiHeadAttention(2, 4)(x, x, **more)

    def grouped(heads: int, keys: int) -> Callable[[Any], Any]:
        return lambda x: L.GroupQueryAttention(4, heads, keys)(x, x, use_causal_mask=True)

    plain: dict[str, Callable[[Any], Any]] = {
        "MultiHeadAttention": mha(),
        "MultiHeadAttention causal": mha(use_causal_mask=True),
        "MultiHeadAttention of three heads": lambda x: L.MultiHeadAttention(3, 4)(x, x),
        "MultiHeadAttention without bias": lambda x: L.MultiHeadAttention(2, 4, use_bias=False)(
            x, x
        ),
        "GroupQueryAttention": grouped(4, 2),
        "GroupQueryAttention of one key head": grouped(4, 1),
        "Attention": lambda x: L.Attention()([x, x]),
        "Attention scaled and by concat": lambda x: L.Attention(True, "concat")([x, x]),
        "Attention causal": lambda x: L.Attention()([x, x], use_causal_mask=True),
        "AdditiveAttention": lambda x: L.AdditiveAttention()([x, x]),
    }
    under_mask: dict[str, Callable[[Any], Any]] = {
        "MultiHeadAttention with mask_zero": mha(),
        "MultiHeadAttention causal with mask_zero": mha(use_causal_mask=True),
        "GroupQueryAttention with mask_zero": grouped(4, 2),
        "Attention with mask_zero": lambda x: L.Attention()([x, x]),
        "AdditiveAttention with mask_zero": lambda x: L.AdditiveAttention()([x, x]),
    }
    return [
        *[Row(name, g, own(make), data) for name, make in plain.items()],
        *[Row(name, g, masked(make), of_ids) for name, make in under_mask.items()],
        Row("MultiHeadAttention with attention_mask", g, given, with_mask),
        Row("MultiHeadAttention over another sequence", g, crossed, data),
    ]


def _recurrent() -> list[Row]:
    g, made = "Recurrent", []
    for name in ("LSTM", "GRU", "SimpleRNN"):
        layer = getattr(L, name)
        for variant, kwargs in {
            "": {},
            " unroll": {"unroll": True},
            " return_sequences": {"return_sequences": True},
            " go_backwards": {"go_backwards": True},
        }.items():
            make = lambda c=layer, k=kwargs: c(4, **k)  # noqa: E731
            made.append(row(f"{name}{variant}", g, make, LINE))
        made += [
            of_tokens(f"{name} with mask_zero", g, lambda x, c=layer: c(4)(x), True),
            of_tokens(
                f"{name} with mask_zero and unroll",
                g,
                lambda x, c=layer: c(4, unroll=True)(x),
                True,
            ),
            of_tokens(
                f"{name} with mask_zero and return_sequences",
                g,
                lambda x, c=layer: c(4)(c(4, return_sequences=True)(x)),
                True,
            ),
            row(f"Bidirectional {name}", g, lambda c=layer: L.Bidirectional(c(4)), LINE),
            row(f"RNN of {name}Cell", g, lambda n=name: L.RNN(getattr(L, f"{n}Cell")(4)), LINE),
        ]
    made += [
        of_tokens(
            "Bidirectional LSTM with mask_zero", g, lambda x: L.Bidirectional(L.LSTM(4))(x), True
        ),
        of_tokens(
            "Bidirectional LSTM with mask_zero and return_sequences",
            g,
            lambda x: L.GRU(4)(L.Bidirectional(L.LSTM(4, return_sequences=True))(x)),
            True,
        ),
        row(
            "StackedRNNCells",
            g,
            lambda: L.RNN(L.StackedRNNCells([L.LSTMCell(4), L.GRUCell(4)])),
            LINE,
        ),
        row("GRU without reset_after", g, lambda: L.GRU(4, reset_after=False), LINE),
        row("LSTM of an odd width", g, lambda: L.LSTM(5), LINE),
        row("ConvLSTM1D", g, lambda: L.ConvLSTM1D(3, 2), (3, 6, 4)),
        row("ConvLSTM2D", g, lambda: L.ConvLSTM2D(3, 2), (3, *PLANE)),
        row(
            "ConvLSTM2D return_sequences",
            g,
            lambda: L.ConvLSTM2D(3, 2, padding="same", return_sequences=True),
            (3, *PLANE),
        ),
        row("ConvLSTM3D", g, lambda: L.ConvLSTM3D(2, 2), (2, *SPACE)),
    ]
    return made
