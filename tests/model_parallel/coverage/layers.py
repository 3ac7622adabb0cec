"""Rows of the layers that compute: dense, convolution, pooling, normalization, shape, merging."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import layers as L  # noqa: N812

from tests.model_parallel.coverage.row import RANDOM, Row, ids, padded, reals

Make = Callable[[], Any]


def between(make: Make, shape: tuple[int, ...], *, first: bool = True) -> Callable[[], Any]:
    """A model with the layer behind a Dense one, whose features may be split over devices."""

    def model() -> keras.Model:
        inputs = x = keras.Input(shape)
        if first:
            x = L.Dense(shape[-1])(x)
        x = make()(x)
        if len(x.shape) > 2:
            x = L.Flatten()(x)
        return keras.Model(inputs, L.Dense(2)(x))

    return model


def row(name: str, group: str, make: Make, shape: tuple[int, ...], **more: Any) -> Row:
    first = more.pop("first", True)
    return Row(
        name,
        group,
        between(make, shape, first=first),
        lambda: (reals(*shape), reals(2, seed=1)),
        **{"rate": 0.02, **more},
    )


def tokens(make: Callable[[Any], Any], mask: bool = False) -> Callable[[], Any]:
    """A model of ids, embedded in eight features."""

    def model() -> keras.Model:
        inputs = keras.Input((6,), dtype="int32")
        x = L.Embedding(12, 8, mask_zero=mask)(inputs)
        return keras.Model(inputs, L.Dense(2)(make(x)))

    return model


def of_tokens(name: str, group: str, make: Any, mask: bool = False, **more: Any) -> Row:
    return Row(name, group, tokens(make, mask), lambda: (padded(12, 6), reals(2, seed=1)), **more)


LINE, PLANE, SPACE = (8, 4), (8, 8, 4), (4, 4, 4, 4)
BY_RANK = {1: LINE, 2: PLANE, 3: SPACE}


def _reflect(x: Any) -> Any:
    return keras.ops.pad(x, ((0, 0), (1, 1), (0, 0)), "reflect")


def _to_space(x: Any) -> Any:
    return tf.nn.depth_to_space(x, 2)


def _to_depth(x: Any) -> Any:
    return tf.nn.space_to_depth(x, 2)


def _core() -> list[Row]:
    g = "Core"

    def reversible() -> keras.Model:
        inputs = keras.Input((6,), dtype="int32")
        table = L.ReversibleEmbedding(12, 8)
        return keras.Model(inputs, table(L.Dense(8)(table(inputs)), reverse=True))

    def untied() -> keras.Model:
        inputs = keras.Input((6,), dtype="int32")
        table = L.ReversibleEmbedding(12, 8, tie_weights=False)
        return keras.Model(inputs, table(L.Dense(8)(table(inputs)), reverse=True))

    def ids_to_ids() -> tuple[Any, Any]:
        return ids(12, 6), ids(12, 6, seed=1)

    cross = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return [
        row("Dense", g, lambda: L.Dense(8, "relu"), (8,)),
        row("Dense that does not divide", g, lambda: L.Dense(7, "relu"), (5,)),
        row("Dense over sequences", g, lambda: L.Dense(8, "gelu"), LINE),
        row(
            "EinsumDense",
            g,
            lambda: L.EinsumDense("abc,cde->abde", (8, 2, 4), bias_axes="de"),
            LINE,
        ),
        row(
            "EinsumDense of one letter",
            g,
            lambda: L.EinsumDense("abc,cd->abd", (8, 6), bias_axes="d"),
            LINE,
        ),
        of_tokens("Embedding", g, lambda x: L.Flatten()(x)),
        of_tokens("Embedding with mask_zero", g, lambda x: L.GlobalAveragePooling1D()(x), True),
        Row("ReversibleEmbedding", g, reversible, ids_to_ids, cross),
        Row("ReversibleEmbedding untied", g, untied, ids_to_ids, cross),
        row("Identity", g, L.Identity, (8,)),
        row("Lambda of a sort", g, lambda: L.Lambda(lambda x: keras.ops.sort(x)), (8,)),
        row("Lambda of top_k", g, lambda: L.Lambda(lambda x: keras.ops.top_k(x, 3)[0]), (8,)),
        row("Lambda of cumsum", g, lambda: L.Lambda(lambda x: keras.ops.cumsum(x, 1)), LINE),
        row("Lambda of a roll", g, lambda: L.Lambda(lambda x: keras.ops.roll(x, 1, 1)), LINE),
        row("Lambda of a reflecting pad", g, lambda: L.Lambda(_reflect), LINE),
        row("Lambda of depth_to_space", g, lambda: L.Lambda(_to_space), PLANE),
        row("Lambda of space_to_depth", g, lambda: L.Lambda(_to_depth), PLANE),
        row("Lambda", g, lambda: L.Lambda(lambda x: keras.ops.sin(x)), (8,)),
        row(
            "Masking", g, lambda: keras.Sequential([L.Masking(), L.GlobalAveragePooling1D()]), LINE
        ),
        row("ActivityRegularization", g, lambda: L.ActivityRegularization(0.01, 0.01), (8,)),
        row("TimeDistributed", g, lambda: L.TimeDistributed(L.Dense(4, "relu")), LINE),
        row("TimeDistributed of Conv2D", g, lambda: L.TimeDistributed(L.Conv2D(3, 2)), SPACE),
        row("Pipeline", g, lambda: L.Pipeline([L.Rescaling(0.5)]), PLANE),
    ]


def _conv() -> list[Row]:
    g, rows = "Convolution", []
    for rank, shape in BY_RANK.items():
        conv = getattr(L, f"Conv{rank}D")
        back = getattr(L, f"Conv{rank}DTranspose")
        for variant, kwargs in {
            "": {},
            " same": {"padding": "same"},
            " strided": {"strides": 2, "padding": "same"},
            " dilated": {"dilation_rate": 2, "padding": "same"},
            " grouped": {"groups": 2},
        }.items():
            rows.append(
                row(f"Conv{rank}D{variant}", g, lambda c=conv, k=kwargs: c(4, 2, **k), shape)
            )
        rows.append(row(f"Conv{rank}DTranspose", g, lambda c=back: c(4, 3), shape))
        rows.append(
            row(
                f"Conv{rank}DTranspose strided",
                g,
                lambda c=back: c(4, 3, strides=2, padding="same"),
                shape,
            )
        )
    rows.append(row("Conv1D causal", g, lambda: L.Conv1D(4, 3, padding="causal"), LINE))
    for rank in (1, 2):
        shape = BY_RANK[rank]
        depth = getattr(L, f"DepthwiseConv{rank}D")
        separable = getattr(L, f"SeparableConv{rank}D")
        rows += [
            row(f"DepthwiseConv{rank}D", g, lambda c=depth: c(3), shape),
            row(
                f"DepthwiseConv{rank}D strided",
                g,
                lambda c=depth: c(3, strides=2, padding="same"),
                shape,
            ),
            row(f"SeparableConv{rank}D", g, lambda c=separable: c(4, 3), shape),
            row(
                f"SeparableConv{rank}D dilated",
                g,
                lambda c=separable: c(4, 3, dilation_rate=2, padding="same"),
                shape,
            ),
        ]
    rows.append(
        row("DepthwiseConv2D dilated", g, lambda: L.DepthwiseConv2D(3, dilation_rate=2), PLANE)
    )
    return rows


def _pool() -> list[Row]:
    g, rows = "Pooling", []
    for rank, shape in BY_RANK.items():
        for kind in ("Max", "Average"):
            pool = getattr(L, f"{kind}Pooling{rank}D")
            whole = getattr(L, f"Global{kind}Pooling{rank}D")
            adaptive = getattr(L, f"Adaptive{kind}Pooling{rank}D")
            rows += [
                row(f"{kind}Pooling{rank}D", g, lambda p=pool: p(2), shape),
                row(f"{kind}Pooling{rank}D same", g, lambda p=pool: p(3, 2, "same"), shape),
                row(f"Global{kind}Pooling{rank}D", g, lambda p=whole: p(), shape),
                row(f"Adaptive{kind}Pooling{rank}D", g, lambda p=adaptive: p(2), shape),
            ]
    return rows


def _norm() -> list[Row]:
    g = "Normalization"
    return [
        row("BatchNormalization", g, L.BatchNormalization, (8,), rtol=1e-4),
        row("BatchNormalization of images", g, L.BatchNormalization, PLANE, rtol=1e-4),
        row(
            "BatchNormalization not fused",
            g,
            lambda: L.BatchNormalization(axis=2),
            LINE,
            rtol=1e-4,
        ),
        row("LayerNormalization", g, L.LayerNormalization, LINE),
        row("LayerNormalization of two axes", g, lambda: L.LayerNormalization([-2, -1]), LINE),
        row("RMSNormalization", g, L.RMSNormalization, LINE),
        row("GroupNormalization", g, lambda: L.GroupNormalization(2), PLANE),
        row("UnitNormalization", g, L.UnitNormalization, LINE),
        row("SpectralNormalization", g, lambda: L.SpectralNormalization(L.Dense(8)), (8,)),
        row(
            "SpectralNormalization of Conv2D",
            g,
            lambda: L.SpectralNormalization(L.Conv2D(4, 2)),
            PLANE,
        ),
    ]


def _shape() -> list[Row]:
    g = "Shape"
    rows = [
        row("Flatten", g, L.Flatten, PLANE),
        row("Reshape", g, lambda: L.Reshape((4, 8)), LINE),
        row("Reshape that splits the features", g, lambda: L.Reshape((8, 2, 2)), LINE),
        row("Reshape with -1", g, lambda: L.Reshape((-1, 2)), LINE),
        row("Permute", g, lambda: L.Permute((2, 1)), LINE),
        row("RepeatVector", g, lambda: L.RepeatVector(3), (8,)),
    ]
    for rank, shape in BY_RANK.items():
        for kind, size in (("Cropping", 1), ("ZeroPadding", 1), ("UpSampling", 2)):
            name = f"{kind}{rank}D"
            rows.append(row(name, g, lambda n=name, s=size: getattr(L, n)(s), shape))
    for how in ("bilinear", "bicubic", "lanczos3"):
        rows.append(
            row(f"UpSampling2D {how}", g, lambda h=how: L.UpSampling2D(2, interpolation=h), PLANE)
        )
    return rows


ACTIVATIONS = re.findall(
    r"\w+",
    """celu elu exponential gelu hard_shrink hard_sigmoid hard_silu hard_tanh leaky_relu linear
    log_sigmoid log_softmax mish relu relu6 selu sigmoid silu soft_shrink softmax softplus softsign
    sparse_plus sparse_sigmoid sparsemax squareplus swish tanh tanh_shrink""",
)


def _activation() -> list[Row]:
    g = "Activation"
    made = [row(f"Activation {n}", g, lambda n=n: L.Activation(n), (8,)) for n in ACTIVATIONS]
    for name in ("ELU", "LeakyReLU", "PReLU", "ReLU", "Softmax"):
        made.append(row(name, g, getattr(L, name), (8,)))
    return made


def _merge() -> list[Row]:
    def model(make: Make) -> Make:
        def made() -> keras.Model:
            inputs = keras.Input((4, 8))
            parts = [L.Dense(8)(inputs), L.Dense(8)(L.Dense(8)(inputs))]
            return keras.Model(inputs, L.Dense(2)(L.Flatten()(make()(parts))))

        return made

    makers: dict[str, Make] = {
        name: getattr(L, name)
        for name in ("Add", "Average", "Concatenate", "Maximum", "Minimum", "Multiply", "Subtract")
    }
    makers |= {
        "Concatenate along the sequence": lambda: L.Concatenate(1),
        "Dot": lambda: L.Dot(2),
        "Dot normalized": lambda: L.Dot(2, normalize=True),
    }
    return [
        Row(name, "Merging", model(make), lambda: (reals(4, 8), reals(2, seed=1)), rate=0.02)
        for name, make in makers.items()
    ]


def _random() -> list[Row]:
    g = "Random"
    makers: dict[str, tuple[Make, tuple[int, ...]]] = {
        "Dropout": (lambda: L.Dropout(0.5), LINE),
        "Dropout with noise_shape": (lambda: L.Dropout(0.5, (None, 1, 4)), LINE),
        "AlphaDropout": (lambda: L.AlphaDropout(0.5), LINE),
        "GaussianDropout": (lambda: L.GaussianDropout(0.5), LINE),
        "GaussianNoise": (lambda: L.GaussianNoise(0.5), LINE),
        "SpatialDropout1D": (lambda: L.SpatialDropout1D(0.5), LINE),
        "SpatialDropout2D": (lambda: L.SpatialDropout2D(0.5), PLANE),
        "SpatialDropout3D": (lambda: L.SpatialDropout3D(0.5), SPACE),
    }
    return [
        row(name, g, lambda m=make: m(), shape, compared=RANDOM)
        for name, (make, shape) in makers.items()
    ]


def rows() -> list[Row]:
    return [
        *_core(),
        *_conv(),
        *_pool(),
        *_norm(),
        *_shape(),
        *_activation(),
        *_merge(),
        *_random(),
    ]
