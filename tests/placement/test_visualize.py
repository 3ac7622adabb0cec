from __future__ import annotations

import contextlib
import io
import json
from typing import Any

import keras
import pytest

import tfaccel
from tfaccel.errors import LayoutError
from tfaccel.placement.report import Report, Row, holders, report
from tfaccel.placement.visualize import examples, named

MESH = (("batch", 2), ("model", 2))
on_mesh = pytest.mark.child(devices=4, group="mesh")


def dense(scope: Any, optimizer: bool = True) -> keras.Model:
    with scope:
        model = keras.Sequential(
            [keras.Input((8,)), keras.layers.Dense(16, name="up"), keras.layers.Dense(4)]
        )
        model.compile("adam", "mse")
        if optimizer:
            model.optimizer.build(model.trainable_variables)
    return model


def model_parallel(layouts: str = "auto") -> Any:
    return tfaccel.strategy(
        "model_parallel", mesh="batch=2,model=2", device_type="cpu", layouts=layouts
    ).scope()


def row(found: Report, path: str) -> Row:
    return next(row for row in found.rows if row.path.endswith(path))


def printed(model: keras.Model) -> str:
    file = io.StringIO()
    tfaccel.visualize(model, file=file)
    return file.getvalue()


def test_every_part_has_its_devices() -> None:
    assert holders(("model", "batch"), MESH, 4) == {
        (0, 0): (0,),
        (1, 0): (1,),
        (0, 1): (2,),
        (1, 1): (3,),
    }
    assert holders((None,), MESH, 4) == {(0,): (0, 1, 2, 3)}
    assert holders((None, None), (), 3) == {(0, 0): (0, 1, 2)}


def test_devices_are_named_in_short() -> None:
    assert named(["GPU:0", "GPU:1", "GPU:2", "GPU:5"]) == "GPU:0-2,5"
    assert named(["worker 0 CPU:0", "worker 1 CPU:0"]) == "worker 0 CPU:0; worker 1 CPU:0"


def test_one_picture_a_layout_and_none_of_scalars() -> None:
    def of(path: str, storage: tuple[str | None, ...]) -> Row:
        return Row(path, "parameters", (4,) * len(storage), "float32", storage, storage, "", 4, 4)

    rows = [of("a", (None, "model")), of("b", (None, "model")), of("c", ()), of("d", (None,))]
    assert [row.path for row in examples(rows)] == ["a", "d"]


def test_without_a_strategy_all_is_on_one_device() -> None:
    found = report(dense(contextlib.nullcontext()))
    assert (found.mesh, found.devices) == ((), ("CPU:0",))
    assert {total.fraction for total in found.totals} == {1.0}
    kernel = row(found, "up/kernel")
    assert (kernel.bytes_whole, kernel.bytes_per_device) == (8 * 16 * 4, 8 * 16 * 4)
    assert kernel.reason == "one device"


def test_the_same_name_is_the_function_each_time() -> None:
    assert tfaccel.visualize is tfaccel.visualize
    assert callable(tfaccel.visualize)


def test_an_unbuilt_model_is_an_error_that_says_build() -> None:
    model = keras.Sequential([keras.layers.Dense(2)], name="later")
    with pytest.raises(LayoutError, match=r"'later' is not built.*model\.build.*fit first"):
        tfaccel.visualize(model)


def test_an_optimizer_that_is_not_built_has_no_rows() -> None:
    found = report(dense(contextlib.nullcontext(), optimizer=False))
    assert "optimizer" not in {row.kind for row in found.rows}


@pytest.mark.child(devices=2, group="mirrored")
def test_replicas_hold_everything() -> None:
    found = report(dense(tfaccel.strategy("mirrored", devices=2, device_type="cpu").scope()))
    assert found.devices == ("CPU:0", "CPU:1")
    assert row(found, "up/kernel").reason == "replicated on 2"
    assert {total.fraction for total in found.totals} == {1.0}


@on_mesh
def test_a_split_kernel_and_its_slots_take_half_of_the_bytes() -> None:
    found = report(dense(model_parallel()))
    assert found.mesh == MESH
    assert len(found.devices) == 4
    for path in ("up/kernel", "up_kernel_momentum", "up_kernel_velocity"):
        kernel = row(found, path)
        assert kernel.storage == (None, "model")
        assert (kernel.bytes_whole, kernel.bytes_per_device) == (8 * 16 * 4, 8 * 16 * 4 // 2)
    assert {row.kind for row in found.rows} == {"parameters", "optimizer", "other"}


@on_mesh
def test_fully_sharded_over_two_axes_takes_a_quarter() -> None:
    found = report(dense(model_parallel("fully_sharded")))
    kernel = row(found, "up/kernel")
    assert (kernel.storage, kernel.compute) == (("batch", "model"), (None, "model"))
    assert kernel.bytes_per_device == 8 * 16 * 4 // 4
    assert row(found, "up_kernel_velocity").bytes_per_device == 8 * 16 * 4 // 4
    parameters = found.totals[0]
    assert parameters.bytes_whole == 4 * (8 * 16 + 16 + 16 * 4 + 4)
    assert parameters.bytes_per_device == 4 * (8 * 16 // 4 + 16 // 2 + 16 * 4 // 4 + 4 // 2)


@on_mesh
def test_the_bytes_are_those_that_the_devices_hold() -> None:
    from tensorflow.experimental import dtensor

    model = dense(model_parallel("fully_sharded"))
    for variable, said in zip(model.weights, report(model).rows, strict=False):
        parts = dtensor.unpack(variable.value.stored())
        assert {part.numpy().nbytes for part in parts} == {said.bytes_per_device}


@on_mesh
def test_the_picture_can_be_read_without_colours() -> None:
    text = printed(dense(model_parallel("fully_sharded")))
    lines = [line for line in text.splitlines() if line.startswith("│")]
    assert "(batch, model), such as sequential" in text
    assert "│ CPU:0 │ CPU:1 │" in lines
    assert "│ CPU:2 │ CPU:3 │" in lines
    assert "\x1b" not in text


@on_mesh
def test_the_report_is_json() -> None:
    found = report(dense(model_parallel()))
    again = json.loads(json.dumps(found.to_dict()))
    assert again["mesh"] == [["batch", 2], ["model", 2]]
    assert again["rows"][0]["storage"] == [None, "model"]
    assert [total["kind"] for total in again["totals"]] == [
        "parameters",
        "optimizer",
        "other",
        "all",
    ]
