"""The allowlist beside hls4ml itself: what is allowed comes out right, what is refused does not.

One network of most layers always runs; each by itself is exhaustive: run them when hls4ml's version
changes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import tfaccel
from tests.fpga import table
from tfaccel.fpga import convert, emulator
from tfaccel.fpga.export_settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("needs_hls4ml")]

WIDE = Settings(precision="fixed<24,10>")


def rows(model: Any) -> np.ndarray:
    random = np.random.default_rng(1)
    shape = (50, *model.input_shape[1:])
    if any(isinstance(layer, keras.layers.Embedding) for layer in model.layers):
        return random.integers(0, 10, shape).astype("float32")
    return random.normal(size=shape).astype("float32")


def test_a_network_of_most_allowed_layers_is_translated_rightly(tmp_path: Path) -> None:
    keras.utils.set_random_seed(3)
    model = table.network()
    random = np.random.default_rng(1)
    report = tfaccel.export_fpga(
        model,
        tmp_path / "out",
        precision=WIDE.precision,
        check={
            "x0": random.normal(size=(50, *table.IMAGE)),
            "x1": random.normal(size=(50, *table.SERIES)),
        },
        min_agreement=0,
        estimate=False,
    )
    assert report.check.maximum < 0.02
    kinds = {type(layer).__name__ for layer in model.layers}
    allowed = {type(layer).__name__ for make in table.RIGHT.values() for layer in make().layers}
    assert allowed - kinds == {"Embedding", "Subtract", "Maximum", "Reshape", "Cropping2D", "ELU"}


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", table.RIGHT)
def test_an_allowed_layer_is_translated_rightly(name: str, tmp_path: Path) -> None:
    keras.utils.set_random_seed(3)
    model = table.RIGHT[name]()
    report = tfaccel.export_fpga(
        model,
        tmp_path / "out",
        precision=WIDE.precision,
        check=rows(model),
        min_agreement=0,
        estimate=False,
    )
    assert report.check.maximum < 0.02


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", table.WRONG)
def test_hls4ml_still_translates_the_refused_layers_wrongly(name: str, tmp_path: Path) -> None:
    """When this fails, hls4ml was fixed, and the layer can be allowed."""
    keras.utils.set_random_seed(3)
    model = table.WRONG[name]()
    model.save(tmp_path / "model.keras")
    log = tmp_path / "log"
    project = convert.convert(tmp_path / "model.keras", tmp_path / "out", WIDE, log)
    convert.compile_project(project, WIDE, log)
    x = rows(model)
    (got,), _ = emulator.run(project, [x], log=log, limit_s=60)
    want = model.predict(x, verbose=0)
    assert np.abs(got - want).max() > 0.1


@pytest.mark.exhaustive
def test_hls4ml_still_translates_a_relu_layer_among_quantized_ones_wrongly(tmp_path: Path) -> None:
    """When this fails, hls4ml was fixed, and `quantize` can leave ReLU as it is."""
    from hgq.layers import QConv2D, QDense

    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            QConv2D(4, 3),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            QDense(5),
        ]
    )
    x = rows(model)
    tfaccel.fpga.calibrate(model, x)
    model.save(tmp_path / "model.keras")
    log = tmp_path / "log"
    project = convert.convert(tmp_path / "model.keras", tmp_path / "out", Settings(), log)
    convert.compile_project(project, Settings(), log)
    (got,), _ = emulator.run(project, [x], log=log, limit_s=60)
    assert np.abs(got - model.predict(x, verbose=0)).max() > 0.5
