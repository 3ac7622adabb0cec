"""Losses and weights on every mesh are those of one device."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import numpy as np
import pytest

from tests.model_parallel.models import MODELS, RTOL, train

RUNS = [
    *(
        (name, mesh, "auto")
        for name in MODELS
        for mesh in ("batch=4", "batch=2,model=2", "model=4")
    ),
    ("mlp", "batch=4", "fully_sharded"),
    ("cnn", "batch=4", "fully_sharded"),
    ("transformer", "batch=2,model=2", "fully_sharded"),
]
# Each model, each mesh and each way to lay it out at least once.
ALWAYS = [
    ("mlp", "batch=4", "auto"),
    ("transformer", "batch=2,model=2", "auto"),
    ("grouped", "model=4", "auto"),
    ("cnn", "batch=4", "fully_sharded"),
]


@functools.cache
def one_device(name: str) -> dict[str, Any]:
    return train(name, contextlib.nullcontext)


@functools.cache
def strategy(mesh: str, layouts: str, devices: int) -> Any:
    import tfaccel

    return tfaccel.strategy(
        "model_parallel",
        mesh=mesh,
        layouts=layouts,
        device_type="cpu",
        devices=devices,
        check="off",  # the test compares with one device itself
    )


def assert_equals_one_device(name: str, mesh: str, layouts: str, devices: int) -> None:
    got = train(name, strategy(mesh, layouts, devices).scope)
    want = one_device(name)
    for i, (a, b) in enumerate(zip(want["initial"], got["initial"], strict=True)):
        assert a.tobytes() == b.tobytes(), f"initial weight {i} differs"
    rtol = RTOL.get(name, 1e-5)
    np.testing.assert_allclose(got["losses"], want["losses"], rtol=rtol)
    for a, b in zip(want["weights"], got["weights"], strict=True):
        # Some numbers, such as the bias of the keys, are nought but rounding.
        np.testing.assert_allclose(b, a, rtol=rtol, atol=max(1e-6, rtol * np.abs(a).max()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mesh", "layouts"),
    [run if run in ALWAYS else pytest.param(*run, marks=pytest.mark.exhaustive) for run in RUNS],
)
@pytest.mark.child(devices=4)
def test_one_process(name: str, mesh: str, layouts: str) -> None:
    assert_equals_one_device(name, mesh, layouts, devices=4)


# The conformance table has a column of this mesh.
@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "transformer" else pytest.mark.exhaustive)
        for name in MODELS
    ],
)
@pytest.mark.child(workers=2, group="2x2")
def test_two_processes_data_and_model(name: str) -> None:
    assert_equals_one_device(name, "batch=2,model=2", "auto", devices=2)


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("name", ["transformer"])
@pytest.mark.child(workers=2, group="4x1")
def test_two_processes_fully_sharded(name: str) -> None:
    assert_equals_one_device(name, "batch=4", "fully_sharded", devices=2)


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("name", ["grouped"])
@pytest.mark.child(workers=2, group="1x4")
def test_two_processes_model(name: str) -> None:
    assert_equals_one_device(name, "model=4", "auto", devices=2)
