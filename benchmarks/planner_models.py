"""Models of known runs, from their sizes, for `benchmarks/planner.py`.

A builder allocates nothing by itself: the planner makes its variables without values. What no
figure depends on much is left out: rotary positions, a dropout of embeddings, the mask of padding.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops


class Block(layers.Layer):
    """Attention and a pair of dense layers, each added to its input.

    Equal blocks have equal configurations, so that the planner counts them once.

    Args:
        width: of the residual stream.
        heads: of attention.
        inner: features between the dense layers.
        groups: heads of keys and values of Llama's block, which has a gate; 0 for GPT-2's.
        dropout: of attention and of each part's result.
        after: whether a norm follows each sum, as in BERT, or precedes each part.
        causal: whether a token sees only those before it.
    """

    def __init__(
        self, width: int, heads: int, inner: int, *, groups: int = 0, dropout: float = 0.0,
        after: bool = False, causal: bool = True, **other: Any,
    ) -> None:  # fmt: skip
        super().__init__(**other)
        self._sizes = {"width": width, "heads": heads, "inner": inner, "groups": groups,
                       "dropout": dropout, "after": after, "causal": causal}  # fmt: skip
        self._after, self._causal, self._gate = after, causal, groups > 0
        with keras.RematScope(None):  # the block is computed again as a whole, if at all
            self.attention = (
                layers.GroupQueryAttention(width // heads, heads, groups, use_bias=False)
                if groups
                else layers.MultiHeadAttention(heads, width // heads, dropout=dropout)
            )
            norm = layers.RMSNormalization if groups else layers.LayerNormalization
            self.norms = [norm(), norm()]
            first = layers.Dense(inner, "silu" if groups else "gelu", use_bias=not groups)
            more = [layers.Dense(inner, use_bias=False)] if groups else []
            self.dense = [first, *more, layers.Dense(width, use_bias=not groups)]
            self.dropout = layers.Dropout(dropout) if dropout else None

    def get_config(self) -> dict[str, Any]:
        """The sizes."""
        return super().get_config() | self._sizes

    def build(self, shape: Any) -> None:
        """Builds the parts, each for a residual stream of `shape`."""
        self.attention.build(shape, shape)
        for layer in self.dense[:-1]:
            layer.build(shape)
        self.dense[-1].build((*shape[:-1], self.dense[0].units))
        for norm in self.norms:
            norm.build(shape)
        self.built = True

    def call(self, x: Any, training: bool | None = None) -> Any:
        """A residual stream."""
        x = self._added(x, self._attend, self.norms[0], training)
        return self._added(x, self._mix, self.norms[1], training)

    def compute_output_shape(self, shape: Any) -> Any:
        """That of the input."""
        return shape

    def _added(self, x: Any, part: Any, norm: Any, training: bool | None) -> Any:
        y = part(x if self._after else norm(x), training)
        y = self.dropout(y, training=training) if self.dropout is not None else y
        return norm(x + y) if self._after else x + y

    def _attend(self, x: Any, training: bool | None) -> Any:
        return self.attention(x, x, use_causal_mask=self._causal, training=training)

    def _mix(self, x: Any, training: bool | None) -> Any:
        y = self.dense[0](x)
        return self.dense[-1](y * self.dense[1](x) if self._gate else y)


class TiedLogits(layers.Layer):
    """Logits from the table of an embedding."""

    def __init__(self, embedding: layers.Embedding) -> None:
        super().__init__(dtype=keras.config.dtype_policy())
        self.embedding = embedding

    def call(self, x: Any) -> Any:
        """Of each token in float32, as losses take them."""
        table = ops.cast(self.embedding.embeddings, x.dtype)
        return ops.cast(ops.matmul(x, ops.transpose(table)), "float32")


def stream(x: Any, blocks: int, remat: bool, **sizes: Any) -> Any:
    """A residual stream after some blocks; `remat` computes each again in the backward pass."""
    for _ in range(blocks):
        with keras.RematScope("full" if remat else None):
            block = Block(**sizes)
        x = block(x)
    return x


def decoder(
    blocks: int, width: int, heads: int, length: int, vocabulary: int, *, inner: int = 0,
    groups: int = 0, tied: bool = True, dropout: float = 0.0, remat: bool = False,
    optimizer: str = "adamw",
) -> keras.Model:  # fmt: skip
    """GPT-2's, or with `groups` Llama's."""
    tokens = keras.Input((length,), dtype="int32")
    embedding = layers.Embedding(vocabulary, width)
    x = embedding(tokens)
    if not groups:
        x = x + layers.Embedding(length, width)(ops.arange(length))
    x = stream(x, blocks, remat, width=width, heads=heads, inner=inner or 4 * width,
               groups=groups, dropout=dropout)  # fmt: skip
    x = layers.RMSNormalization()(x) if groups else layers.LayerNormalization()(x)
    head = TiedLogits(embedding) if tied else layers.Dense(vocabulary, use_bias=False)
    logits = head(x)
    return compiled(keras.Model(tokens, logits if tied else ops.cast(logits, "float32")), optimizer)


def bert(
    blocks: int, width: int, heads: int, length: int, *, vocabulary: int = 30522, masked: int = 0,
    remat: bool = False, optimizer: str = "adamw",
) -> keras.Model:  # fmt: skip
    """A classifier of two classes, or with `masked` the tokens of that many positions."""
    tokens = keras.Input((length,), dtype="int32")
    segments = keras.Input((length,), dtype="int32")
    embedding = layers.Embedding(vocabulary, width)
    x = embedding(tokens) + layers.Embedding(2, width)(segments)
    x = x + layers.Embedding(length, width)(ops.arange(length))
    x = layers.LayerNormalization()(x)  # without a dropout here blocks are counted from three
    x = stream(x, blocks, remat, width=width, heads=heads, inner=4 * width, dropout=0.1,
               after=True, causal=False)  # fmt: skip
    if masked:
        y = layers.LayerNormalization()(layers.Dense(width, "gelu")(x[:, :masked]))
        y = TiedLogits(embedding)(y)
    else:
        y = layers.Dropout(0.1)(layers.Dense(width, "tanh")(x[:, 0]))
        y = layers.Dense(2, dtype="float32")(y)
    return compiled(keras.Model([tokens, segments], y), optimizer)


def resnet50(size: int = 224, classes: int = 1000) -> keras.Model:
    """ResNet-50 of `keras.applications`, with SGD and momentum."""
    model = keras.applications.ResNet50(
        weights=None, classes=classes, input_shape=(size, size, 3), classifier_activation=None
    )
    return compiled(model, keras.optimizers.SGD(0.1, momentum=0.9))


def compiled(model: keras.Model, optimizer: Any) -> keras.Model:
    """With a loss for the classes of its last dimension."""
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model
