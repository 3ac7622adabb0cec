"""Parameters and slots are counted to the byte, against variables that were really made."""

from __future__ import annotations

from typing import Any

import pytest

import tfaccel
from tests.planner.builders import BUILDERS
from tests.planner.real import held
from tfaccel.distribute.model_parallel.layout_planner import LayoutPlanner
from tfaccel.distribute.model_parallel.mesh import MeshShape
from tfaccel.planner.models import Models
from tfaccel.planner.state import State, count

MESHES = [("batch=2,model=2", "auto"), ("model=4", "auto"), ("batch=4", "fully_sharded"),
          ("batch=2,model=2", "fully_sharded")]  # fmt: skip


_EXHAUSTIVE = pytest.mark.exhaustive


def counted(name: str, precision: str, planner: LayoutPlanner | None = None) -> State:
    variant = Models(BUILDERS[name], (2, 4)).variant(precision, fused=planner is None)
    return count(variant.model, variant.made, planner)


def really(name: str, strategy: Any) -> tuple[int, int, int]:
    with strategy.scope():
        model = BUILDERS[name]()
        model.optimizer.build(model.trainable_variables)
    trained = held(model.trainable_variables)
    return held(model.weights), held(model.optimizer.variables), trained


def same(state: State, real: tuple[int, int, int]) -> bool:
    return (state.parameters, state.slots, state.gradients) == real


SOME = ["mlp", "transformer"]
NAMES = [*SOME, *(pytest.param(n, marks=_EXHAUSTIVE) for n in BUILDERS if n not in SOME)]


@pytest.mark.child(devices=2, group="replicas")
@pytest.mark.parametrize("name", NAMES)
def test_replicas(name: str) -> None:
    for strategy, precision in (("one_device", "mixed_bfloat16"), ("mirrored", "float32")):
        made = tfaccel.strategy(strategy, device_type="cpu", devices=1 + (strategy == "mirrored"),
                                precision=precision)  # fmt: skip
        assert same(counted(name, precision), really(name, made))


@pytest.mark.child(devices=4, group="meshes")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("mesh", "layouts"), [MESHES[0], *(pytest.param(*m, marks=_EXHAUSTIVE) for m in MESHES[1:])]
)
def test_meshes(name: str, mesh: str, layouts: str) -> None:
    planner = LayoutPlanner(MeshShape.parse(mesh), layouts)
    made = tfaccel.strategy("model_parallel", device_type="cpu", devices=4, mesh=mesh,
                            layouts=layouts, check="off")  # fmt: skip
    assert same(counted(name, "float32", planner), really(name, made))
