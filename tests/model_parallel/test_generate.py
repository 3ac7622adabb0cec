"""A language model of keras_hub generates on a mesh what it generates on one device."""

from __future__ import annotations

import contextlib
from typing import Any

import keras
import numpy as np
import pytest

from tests.model_parallel.test_training import strategy

keras_hub = pytest.importorskip("keras_hub")

pytestmark = [pytest.mark.slow, pytest.mark.child(devices=4, group="variable")]

TOKENS = np.random.default_rng(0).integers(1, 31, (2, 12)).astype("int32")


def prompt() -> dict[str, Any]:
    given = np.arange(12) < 5
    return {"token_ids": TOKENS * given, "padding_mask": np.tile(given.astype("int32"), (2, 1))}


def language_model(sampler: Any, **more: Any) -> Any:
    keras.utils.set_random_seed(3)
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=32,
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        max_sequence_length=16,
        dropout=0.0,
    )
    model = keras_hub.models.GPT2CausalLM(backbone=backbone, preprocessor=None)
    model.compile(keras.optimizers.Adam(0.01), sampler=sampler(), **more)
    return model


@pytest.mark.parametrize("eagerly", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_generates_as_one_device_before_and_after_training(eagerly: bool) -> None:
    found = []
    for scope in (contextlib.nullcontext, strategy("fully_sharded").scope):
        with scope():
            model = language_model(keras_hub.samplers.GreedySampler, run_eagerly=eagerly)
        said = [model.generate(prompt(), stop_token_ids=None)["token_ids"]]
        if not eagerly:
            model.fit(prompt(), TOKENS, epochs=3, verbose=0)
            said.append(model.generate(prompt(), stop_token_ids=None)["token_ids"])
        found.append(said)
    np.testing.assert_array_equal(found[1], found[0])
    assert eagerly or (found[1][0] != found[1][1]).any(), "the new weights were not seen"


def test_sampled_text_moves_its_seed_on() -> None:
    found = []
    for scope in (contextlib.nullcontext, strategy().scope):
        with scope():
            model = language_model(lambda: keras_hub.samplers.TopKSampler(k=5, seed=4))
        inside = scope() if found else contextlib.nullcontext()
        with inside:
            said = [model.generate(prompt(), stop_token_ids=None)["token_ids"] for _ in range(3)]
        found.append([*said, model.sampler.seed_generator.state.numpy()])
    for want, got in zip(*found, strict=True):
        np.testing.assert_array_equal(got, want)
    assert (found[1][0] != found[1][1]).any()
