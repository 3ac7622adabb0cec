"""`auto` for a model: replicas where it fits, else a mesh, else one line."""

from __future__ import annotations

import dataclasses
from typing import Any
from unittest import mock

import pytest

from tests.support import run_child
from tfaccel.cluster import Cluster
from tfaccel.errors import StrategyError
from tfaccel.hardware import Device
from tfaccel.planner import device_catalogue, planned_strategy
from tfaccel.strategies.selection import Selection

CPU = (Device("CPU", 0),)
FOUR: dict[str, Any] = {"device_type": "cpu", "devices": 4}
TWO_WORKERS = Cluster(("127.0.0.1:1", "127.0.0.1:2"), 0, "a test")


def build() -> Any:
    import keras

    wide = [keras.layers.Dense(1024, activation="relu") for _ in range(2)]
    model = keras.Sequential([keras.Input((256,)), *wide, keras.layers.Dense(8)])
    model.compile("adam", "mse")
    return model


def chain() -> Any:
    """Activations take most of its memory."""
    import keras

    hidden = [keras.layers.Dense(64, activation="gelu") for _ in range(8)]
    model = keras.Sequential([keras.Input((64,)), *hidden, keras.layers.Dense(4)])
    model.compile("adam", "mse")
    return model


def select(megabytes: int, cluster: Cluster | None = None, **values: Any) -> Selection:
    """On a host with so much memory."""
    host = dataclasses.replace(device_catalogue.here(), usable=megabytes << 20)
    with mock.patch.object(device_catalogue, "here", return_value=host):
        return planned_strategy.select(build, 32, None, values, {}, CPU, cluster)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("megabytes", "name", "mesh"),
    [
        (4000, "mirrored", None),
        (88, "model_parallel", "batch=2,model=2"),
        (56, "model_parallel", "model=4"),
    ],
)
def test_what_does_not_fit_as_replicas_is_split(megabytes: int, name: str, mesh: str) -> None:
    found = select(megabytes, **FOUR)
    assert (found.choice.name, found.options.mesh) == (name, mesh)
    assert found.choice.reason.startswith("planned for build: the simplest of ")
    assert len(found.devices) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("megabytes", "requested", "mode"),
    [
        pytest.param(100, None, None, id="fits"),
        pytest.param(72, None, "full", id="may just fit as it is"),
        pytest.param(48, None, "full", id="does not fit as it is"),
        pytest.param(48, "full", "full", id="requested too"),
    ],
)
def test_layers_are_computed_again_where_nothing_fits_as_it_is(
    megabytes: int, requested: str | None, mode: str | None
) -> None:
    host = dataclasses.replace(device_catalogue.here(), usable=megabytes << 20)
    values = {"device_type": "cpu", "devices": 2, "rematerialization": requested}
    with mock.patch.object(device_catalogue, "here", return_value=host):
        found = planned_strategy.select(chain, 8192, None, values, {}, CPU, None)
    assert (found.choice.name, found.options.rematerialization) == ("mirrored", mode)
    assert ("with layers that are computed again" in found.choice.reason) == (mode == "full")


@pytest.mark.slow
def test_another_rematerialization_that_was_requested_is_kept() -> None:
    host = dataclasses.replace(device_catalogue.here(), usable=48 << 20)
    values = {"device_type": "cpu", "devices": 2, "rematerialization": "activations"}
    with (
        mock.patch.object(device_catalogue, "here", return_value=host),
        pytest.raises(StrategyError, match="'auto' for chain: "),
    ):
        planned_strategy.select(chain, 8192, None, values, {}, CPU, None)


@pytest.mark.slow
def test_workers_share_a_model_that_none_holds() -> None:
    assert select(4000, TWO_WORKERS).choice.name == "multi_worker_mirrored"
    assert select(26, TWO_WORKERS).options.mesh == "model=2"


@pytest.mark.slow
def test_what_fits_in_no_way_is_refused_with_what_would_make_it_fit() -> None:
    with pytest.raises(StrategyError, match=r"'auto' for build: nothing fits: .* misses .* of"):
        select(8, **FOUR)


def test_on_one_device_there_is_nothing_to_choose() -> None:
    assert select(1).choice.name == "one_device"


def test_what_was_requested_takes_precedence() -> None:
    def named(name: str | None, environ: dict[str, str], **values: Any) -> Selection:
        return planned_strategy.select(build, 32, name, {**FOUR, **values}, environ, CPU, None)

    assert named(None, {"TFACCEL_STRATEGY": "mirrored"}).choice.name == "mirrored"
    assert named(None, {"TFACCEL_MESH": "model=4"}).choice.name == "model_parallel"
    with pytest.raises(StrategyError, match="strategy 'mirrored' was requested together with"):
        named("mirrored", {})
    with pytest.raises(StrategyError, match="a mesh was requested together with model="):
        named("auto", {}, mesh="model=4")
    with pytest.raises(StrategyError, match=r"model= without batch_size= was given"):
        planned_strategy.select(build, None, None, FOUR, {}, CPU, None)


SCRIPT = """
import numpy as np
import tfaccel
from tests.planner.test_auto import build
from tfaccel.planner import device_catalogue
import dataclasses

host = dataclasses.replace(device_catalogue.here(), usable=88 << 20)
device_catalogue.here = lambda: host
strategy = tfaccel.strategy(model=build, batch_size=32, device_type="cpu", devices=4, seed=1)
assert "batch=2,model=2" in tfaccel.describe(strategy), tfaccel.describe(strategy)
with strategy.scope():
    model = build()
x = np.random.default_rng(0).normal(size=(64, 256)).astype("float32")
losses = model.fit(x, x[:, :8], batch_size=32, epochs=3, verbose=0).history["loss"]
assert losses[-1] < losses[0], losses
try:
    tfaccel.strategy(model=lambda: 1 / 0, batch_size=32, device_type="cpu", devices=2)
except ZeroDivisionError:
    print("a builder's own error, once TensorFlow runs")
"""


AGAIN = """
import dataclasses
import numpy as np
import tfaccel
from tests.planner.test_auto import chain
from tfaccel.planner import device_catalogue

host = dataclasses.replace(device_catalogue.here(), usable=48 << 20)
device_catalogue.here = lambda: host
strategy = tfaccel.strategy(model=chain, batch_size=8192, device_type="cpu", devices=2)
said = tfaccel.describe(strategy)
assert "mirrored" in said and "layers are computed again" in said, said
with strategy.scope():
    model = chain()
x = np.random.default_rng(0).normal(size=(8192, 64)).astype("float32")
losses = model.fit(x, x[:, :4], batch_size=8192, epochs=3, verbose=0).history["loss"]
assert losses[-1] < losses[0], losses
"""


@pytest.mark.slow
def test_a_planned_strategy_computes_layers_again() -> None:
    run_child(["-c", AGAIN])


@pytest.mark.slow
def test_the_devices_are_still_free_after_a_plan() -> None:
    run_child(["-c", SCRIPT])
    broken = "import tfaccel; tfaccel.strategy(model=lambda: 1 / 0, batch_size=8, devices=2)"
    says = run_child(["-c", broken], codes=(1,))
    assert "the model could not be planned (ZeroDivisionError: division by zero)" in says
