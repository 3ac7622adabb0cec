"""Steps of small models: operations, shapes and what is sent, against figures made by hand."""

from __future__ import annotations

import keras
import pytest

from tests.planner.builders import BUILDERS, deep
from tfaccel.distribute.model_parallel.layout_planner import LayoutPlanner
from tfaccel.distribute.model_parallel.mesh import MeshShape
from tfaccel.planner import costs, device_catalogue
from tfaccel.planner.candidates import Candidate
from tfaccel.planner.estimate import Estimate, _model_dims, _stored, estimate
from tfaccel.planner.models import Models

ROWS = 32
HERE = device_catalogue.Machines(device_catalogue.here(), 1, 4)


@pytest.fixture(scope="module")
def models() -> dict[str, Models]:
    return {name: Models(build, (2, ROWS)) for name, build in BUILDERS.items()}


def of(
    models: Models,
    mesh: str | None = None,
    layouts: str = "auto",
    devices: int = 1,
    rows: int = ROWS,
) -> Estimate:
    if mesh is not None:
        shape = MeshShape.parse(mesh)
        one = Candidate("model_parallel", shape.size, 1, "float32", shape, layouts)
    else:
        name = "mirrored" if devices > 1 else "one_device"
        one = Candidate(name, devices, 1, "float32")
    return estimate(one, rows, HERE, models)


def test_products_of_an_mlp(models: dict[str, Models]) -> None:
    """2 per weight and row forward, 4 backward, but for the first layer's input: 2."""
    weights = 4 * 64 * 64 + 64 * 8
    products = ROWS * (6 * weights - 2 * 64 * 64)
    found = of(models["mlp"]).flops
    assert found is not None
    assert products < found < 1.2 * products


def test_replicas_send_gradients_once_around_the_ring(models: dict[str, Models]) -> None:
    found = of(models["mlp"], devices=4)
    assert found.all_gradients == 4 * (4 * (64 * 64 + 64) + 64 * 8 + 8)
    assert found.wire == {"all-reduce": costs.all_reduce(found.all_gradients, 4)}
    assert found.rows == ROWS // 4


def test_pairs_of_dense_layers_send_one_activation_each_way(models: dict[str, Models]) -> None:
    """Columns then rows: forward after each pair, backward before it, but for the batch.

    The fifth layer has columns alone: its input's gradient is summed, its logits are gathered.
    """
    activation = 4 * ROWS * 64
    sums = 2 + 1 + 1  # forward; before the second pair, and before the fifth layer
    logits = costs.all_gather(4 * ROWS * 8, 2)
    wire = of(models["mlp"], "model=2").wire
    assert wire["all-reduce"] == sums * costs.all_reduce(activation, 2)
    assert wire["all-gather"] == logits


def test_fully_sharded_gathers_parameters_and_sums_gradients(models: dict[str, Models]) -> None:
    found = of(models["mlp"], "batch=4", "fully_sharded")
    stored = found.parameters
    assert (
        stored == found.all_gradients == pytest.approx(of(models["mlp"]).parameters / 4, rel=0.01)
    )
    whole = of(models["mlp"]).parameters
    assert found.wire["all-reduce"] == costs.all_reduce(whole, 4)
    assert found.wire["all-gather"] == costs.all_gather(whole, 4)


@pytest.mark.parametrize(
    "name",
    [
        "transformer",
        *(pytest.param(n, marks=pytest.mark.exhaustive) for n in BUILDERS if n != "transformer"),
    ],
)
def test_sizes_are_linear_in_rows(name: str, models: dict[str, Models]) -> None:
    """What two traces say of a third number of rows is what a trace of that says."""
    between = models[name].variant("float32", True).step
    traced = Models(BUILDERS[name], (8, 9)).variant("float32", True).step
    assert between.rows == (2, ROWS)
    assert between.sizes(8) == traced.sizes(8)


def test_zeros_that_are_constants_for_few_rows_do_not_stop_them() -> None:
    """Of the states of a recurrent layer: (2, 128) is a constant, (16, 128) is filled."""

    def build() -> keras.Model:
        x = keras.Input((4, 8))
        model = keras.Model(x, keras.layers.LSTM(128, unroll=True)(x))
        model.compile("sgd", "mse")
        return model

    models = Models(build, (2, ROWS))
    for precision in ("float32", "mixed_bfloat16"):
        one = Candidate("one_device", 1, 1, precision)
        whole, half = (estimate(one, rows, HERE, models) for rows in (ROWS, ROWS // 2))
        assert whole.activations
        assert half.activations
        assert 0 <= 2 * half.activations - whole.activations < 16  # but for a few numbers


def test_everything_is_counted(models: dict[str, Models]) -> None:
    """Conditions too, of accumulated gradients and a loss scale."""
    for name in ("mlp", "transformer", "accumulating"):
        found = of(models[name])
        assert found.peak == sum(
            (found.parameters, found.slots, found.other, found.gradients,
             found.activations or 0, found.workspace)
        ), name  # fmt: skip
        assert found.fits


def test_an_update_begins_before_the_last_gradient() -> None:
    """Though all gradients go through one operation, they are not all alive at once."""
    one = of(Models(deep, (2, ROWS)), rows=1)
    assert one.gradients < one.all_gradients / 2


def test_a_mesh_divides_activations(models: dict[str, Models]) -> None:
    """The hidden features of each pair are half, its inputs and results whole."""
    whole, half = of(models["mlp"], rows=4096), of(models["mlp"], "model=2", rows=4096)
    assert whole.activations is not None
    assert half.activations is not None
    assert 0.5 * whole.activations < half.activations < whole.activations


def test_an_update_on_a_mesh_is_divided_once(models: dict[str, Models]) -> None:
    """What the optimizer computes for a weight is as large as the device's part of the weight."""
    mesh = MeshShape.parse("model=2")
    variant = models["mlp"].variant("float32", False)
    sized, state = variant.sized(None), variant.state(None, mesh, "auto")
    planner, work = LayoutPlanner(mesh, "auto"), sized.work(ROWS)
    split = work.spread(2, _model_dims(state, planner))
    sizes = [n if d is None else n // 2 for n, d in zip(work.sizes, split.dims, strict=True)]
    stored = _stored(sized.step, sizes, sized, state, planner)
    last_backward = max(i for i, op in enumerate(sized.step.operations) if op.backward)
    updates = [
        op.outputs[0]
        for op in sized.step.operations[last_backward + 1 :]
        if op.kind == "Mul" and sized.step.values[op.outputs[0]].more == (64, 64)
    ]
    assert len(updates) >= 3 * 4
    assert {stored[value] for value in updates} == {4 * 64 * 64 // 2}
