"""Every model of `keras.applications` has a plan."""

from __future__ import annotations

from typing import Any

import keras
import pytest

import tfaccel

NAMES = [
    name
    for name, value in sorted(vars(keras.applications).items())
    if name[0].isupper() and callable(value)
]
CHEAP = ("VGG16",)


def build(name: str) -> keras.Model:
    """The model for its own image size; those that take any size get 224."""
    given: dict[str, Any] = {"input_shape": (224, 224, 3)} if "NetV3" in name else {}
    model = getattr(keras.applications, name)(weights=None, **given)
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


def test_all_are_there() -> None:
    assert len(NAMES) >= 38
    assert set(CHEAP) <= set(NAMES)


@pytest.mark.parametrize(
    "name",
    [n if n in CHEAP else pytest.param(n, marks=pytest.mark.exhaustive) for n in NAMES],
)
def test_it_has_a_plan(name: str) -> None:
    """Its memory and its operations are known, as replicas and divided over a model axis."""
    found = tfaccel.plan(lambda: build(name), devices="2xT4", batch_size=8, precision="float32")
    assert len(found.estimates) == 4
    for one in found.estimates:
        assert one.peak is not None, one.why_not
        assert one.peak > one.bytes_between_steps > 0
        assert one.flops
        assert one.time is not None
