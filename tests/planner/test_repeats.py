"""Equal blocks count once: three of them, extended, are what tracing all of them gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import pytest
from keras import layers

from tfaccel.planner import device_catalogue, estimate
from tfaccel.planner.candidates import candidates
from tfaccel.planner.estimate import Estimate
from tfaccel.planner.models import Models
from tfaccel.planner.repeated_blocks import Call, repeats

FOUR = device_catalogue.parse("4xT4", device_catalogue.catalogue())


def compiled(model: keras.Model, optimizer: Any = "adam") -> keras.Model:
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def decoder() -> keras.Model:
    """Seven blocks with grouped heads and gated dense layers, and dropout."""
    ids = keras.Input((16,), dtype="int32")
    x = layers.Embedding(128, 64)(ids)
    for _ in range(7):
        y = layers.RMSNormalization()(x)
        x = x + layers.GroupQueryAttention(16, 4, 2)(y, y, use_causal_mask=True)
        y = layers.RMSNormalization()(x)
        y = layers.Dense(96, activation="silu")(y) * layers.Dense(96)(y)
        x = x + layers.Dropout(0.1)(layers.Dense(64)(y))
    return compiled(keras.Model(ids, layers.Dense(128, dtype="float32")(x)))


def dense() -> keras.Model:
    """Eight equal layers, of which an odd number lies between two that a mesh splits alike."""
    hidden = [layers.Dense(64, activation="relu") for _ in range(8)]
    return compiled(keras.Sequential([keras.Input((64,)), *hidden, layers.Dense(8)]))


class Listed(keras.Model):  # type: ignore[misc]
    """Seven pairs of layers in two lists, called by its own `call`."""

    def __init__(self, every: int = 1) -> None:
        super().__init__()
        self.norms = [layers.LayerNormalization() for _ in range(7)]
        self.dense = [layers.Dense(64, activation="gelu") for _ in range(7)]
        self.head, self.every = layers.Dense(8), every

    def call(self, x: Any) -> Any:
        for i, (norm, dense) in enumerate(zip(self.norms, self.dense, strict=True)):
            x = x + dense(norm(x))
            if i % self.every:
                x = keras.ops.tanh(x)
        return self.head(x)


def listed() -> keras.Model:
    return compiled(Listed())


def both(
    build: Callable[[], keras.Model], precision: str, meshes: bool, accumulate: int = 1
) -> list[tuple[Estimate, Estimate]]:
    """Candidates extended from three blocks, and traced with all."""
    shape = (64,) if build is listed else None
    short, whole = Models(build, (2, 32), shape), Models(build, (2, 32), shape, whole="a test")
    found = []
    for one in candidates(FOUR, [precision]):
        if meshes or one.mesh is None:
            one = dataclasses.replace(one, accumulate=accumulate)
            found.append((estimate.estimate(one, 64, FOUR, short),
                          estimate.estimate(one, 64, FOUR, whole)))  # fmt: skip
    assert short.repetition[0].endswith("equal blocks were counted from 3 of them")
    assert whole.repetition == ("a test",)
    return found


def rematerialized_decoder() -> keras.Model:
    with keras.RematScope("full"):
        return decoder()


def rematerialized_dense() -> keras.Model:
    with keras.RematScope("full"):
        return dense()


def counted(one: Estimate) -> dict[str, Any]:
    found = dataclasses.asdict(one)
    del found["time"]  # a sum of fractions, in another order
    return found


_ALL = [
    (decoder, "float32", False, 1),
    pytest.param(decoder, "float32", True, 1, marks=pytest.mark.exhaustive),
    pytest.param(decoder, "mixed_bfloat16", False, 1, marks=pytest.mark.exhaustive),
    pytest.param(decoder, "mixed_float16", False, 1, marks=pytest.mark.exhaustive),
    pytest.param(decoder, "float32", True, 2, marks=pytest.mark.exhaustive),
    pytest.param(rematerialized_decoder, "float32", False, 1, marks=pytest.mark.exhaustive),
    (dense, "mixed_float16", False, 2),
    (dense, "float32", True, 1),
    (rematerialized_dense, "float32", True, 1),
    (listed, "float32", True, 1),
]


@pytest.mark.parametrize(("build", "precision", "meshes", "accumulate"), _ALL)
def test_blocks_that_are_extended_are_those_that_are_traced(
    build: Callable[[], keras.Model],
    precision: str,
    meshes: bool,
    accumulate: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To the byte: parameters, slots, gradients, what is sent, operations, and the peak."""
    monkeypatch.setattr(estimate, "EXACT", 3)
    for extended, traced in both(build, precision, meshes, accumulate):
        assert counted(extended) == counted(traced)
        assert extended.time is not None
        assert traced.time is not None
        assert extended.time.total == pytest.approx(traced.time.total, rel=1e-9)


def test_a_builder_that_looks_at_its_blocks_has_all_of_them() -> None:
    """Also where the blocks that it freezes would be there in a shorter model."""

    def frozen() -> keras.Model:
        model = dense()
        model.layers[2].trainable = False
        return compiled(model)

    models = Models(frozen, (2, 4))
    variant = models.variant("float32", True)
    assert variant.count is None
    assert "looks at the model's layers" in models.repetition[0]
    assert len(variant.model.trainable_variables) == 2 * (9 - 1)


def test_blocks_that_are_not_trained_alike_are_traced_one_by_one() -> None:
    def frozen() -> keras.Model:
        hidden = [layers.Dense(64) for _ in range(8)]
        model = keras.Sequential([keras.Input((64,)), *hidden])
        hidden[5].trainable = False
        return compiled(model)

    models = Models(frozen, (2, 4))
    variant = models.variant("float32", True)
    assert variant.count is None
    assert "not all equal blocks are trained" in models.repetition[0]
    assert len(variant.model.trainable_variables) == 2 * (8 - 1)


def test_a_list_whose_layers_are_not_called_alike_is_traced_whole() -> None:
    models = Models(lambda: compiled(Listed(every=2)), (2, 4), (64,))
    variant = models.variant("float32", True)
    assert variant.count is None
    assert len(variant.model.trainable_variables) == 7 * 4 + 2


def chain(*tokens: int) -> list[Call]:
    """Calls that each take what the one before made."""
    return [Call(t, ((i - 1, 0), (i, -1)), object) for i, t in enumerate(tokens)]


def test_the_blocks_that_spare_most_are_found() -> None:
    found = repeats(chain(0, *[1, 1, 1, 1, 1, 2] * 6, 3), [])
    assert found is not None
    assert (found.start, found.period, found.count) == (1, 6, 6)
    assert repeats(chain(0, *[1, 2] * 4, 3), []) is None, "four blocks are too few"


def test_what_is_used_of_an_inner_block_keeps_all_of_them() -> None:
    assert repeats(chain(*[1] * 8), [(7, 0)]) is not None
    assert repeats(chain(*[1] * 8), [(3, 0), (7, 0)]) is None


def test_a_shared_layer_is_no_new_one() -> None:
    """A layer called again has the weights it had: the run goes as far as its kind of calls."""
    calls = chain(*[1] * 12)
    shared = [Call(1, ((i - 1, 0), (5, -1)), object) for i in range(6, 12)]
    found = repeats([*calls[:6], *shared], [])
    assert found is not None
    assert found.end <= 6 or found.start >= 5
