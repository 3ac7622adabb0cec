"""Meshes as users write them."""

from __future__ import annotations

from typing import Any

import pytest

from tfaccel.distribute.model_parallel.mesh import MeshShape
from tfaccel.errors import LayoutError


@pytest.mark.parametrize(
    ("asked", "devices", "axes"),
    [
        ("batch=2,model=4", None, {"batch": 2, "model": 4}),
        (" batch = 2 , model=4 ", None, {"batch": 2, "model": 4}),
        ({"data": 2, "expert": 3, "model": 1}, None, {"data": 2, "expert": 3, "model": 1}),
        ("batch=-1,model=2", 8, {"batch": 4, "model": 2}),
        ("model=-1", 6, {"model": 6}),
        (MeshShape((("x", 2),)), None, {"x": 2}),
    ],
)
def test_axes_are_read(asked: Any, devices: int | None, axes: dict[str, int]) -> None:
    assert MeshShape.parse(asked, devices).sizes == axes


@pytest.mark.parametrize(
    ("asked", "devices", "says"),
    [
        (
            "batch",
            None,
            r"mesh is 'batch' \('batch' cannot be read\); expected .* 'batch=2,model=4'",
        ),
        ("batch=0", None, "'batch=0' cannot be read"),
        ("batch=2,model=two", None, "'model=two' cannot be read"),
        ("batch=2,", None, "'' cannot be read"),
        ("2x4", None, "'2x4' cannot be read"),
        ("batch=2,batch=4", None, "an axis comes twice"),
        ("batch=-1,model=-1", 4, "there are 4 devices; expected at most one axis of -1"),
        ("batch=-1,model=3", 4, "expected at most one axis of -1 and devices that divide by 3"),
    ],
)
def test_a_bad_mesh_gets_one_line(asked: str, devices: int | None, says: str) -> None:
    with pytest.raises(LayoutError, match=says) as error:
        MeshShape.parse(asked, devices)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("asked", "batch", "model"),
    [
        ("batch=2,model=2", "batch", "model"),
        ("data=2,expert=2,model=2", "data", "model"),
        ("tensor=2,batch=2", "batch", "tensor"),
        ("model=4", None, "model"),
        ("batch=4", "batch", None),
    ],
)
def test_what_the_axes_are_for(asked: str, batch: str | None, model: str | None) -> None:
    mesh = MeshShape.parse(asked)
    assert (mesh.batch_axis, mesh.model_axis) == (batch, model)


@pytest.mark.parametrize(
    ("asked", "workers", "each"),
    [("batch=2,model=4", 2, 4), ("model=1", 4, 1), (None, 2, None), ("batch=-1", 2, None)],
)
def test_devices_of_each_worker(asked: str | None, workers: int, each: int | None) -> None:
    assert MeshShape.devices_for(asked, workers) == each
