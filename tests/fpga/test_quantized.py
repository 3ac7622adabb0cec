"""Quantization-aware training: under strategies, and bit-exact afterwards."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import tfaccel
from tests.fpga.conftest import Digits
from tests.support import run_child
from tfaccel.cli import main as tfaccel_command
from tfaccel.errors import FpgaError
from tfaccel.fpga.export import prepare
from tfaccel.fpga.export_settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("needs_hls4ml")]


def mlp() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Flatten(name="flat"),
            layers.Dense(16, activation="relu", name="hidden"),
            layers.BatchNormalization(name="norm"),
            layers.Dense(10, activation="softmax", name="scores"),
        ],
        name="mlp",
    )


def cnn() -> keras.Model:
    given = keras.Input((8, 8, 1))
    image = layers.Conv2D(4, 3, padding="same", activation="relu", name="first")(given)
    image = layers.MaxPooling2D(name="pool")(image)
    branch = layers.Conv2D(4, 3, padding="same", name="second")(image)
    image = layers.ReLU(name="relu")(layers.Add(name="add")([image, branch]))
    image = layers.AveragePooling2D(2, name="average")(image)
    scores = layers.Dense(10, name="scores")(layers.Flatten(name="flat")(image))
    return keras.Model(given, layers.Softmax(name="softmax")(scores), name="cnn")


def trained(make: Any, digits: Digits) -> keras.Model:
    keras.utils.set_random_seed(1)
    model = tfaccel.fpga.quantize(make())
    model.compile(keras.optimizers.Adam(5e-3), "sparse_categorical_crossentropy")
    model.fit(digits.x, digits.y, epochs=10, verbose=0)
    return model


@pytest.mark.exhaustive  # the example below, and what the command exports, are bit-exact too
@pytest.mark.parametrize("make", [mlp, cnn])
def test_a_quantized_model_is_bit_exact_on_every_row(
    make: Any, digits: Digits, tmp_path: Path
) -> None:
    model = trained(make, digits)
    # The rows of the check reach further than those of training, as real ones may.
    x = np.concatenate([digits.x_held_out, digits.x])
    y = np.concatenate([digits.y_held_out, digits.y])
    report = tfaccel.export_fpga(model, tmp_path / "out", check=(x, y), calibrate=x)
    assert report.verdict == f"bit-exact on {len(x)} of {len(x)} rows"
    assert report.check.maximum == 0
    assert report.check.accuracy == report.check.keras_accuracy > 0.75
    figures = {one.name: one.value for one in report.figures}
    assert {one.kind for one in report.figures} == {"estimated"}
    assert figures["EBOPs"] > figures["LUT"] > figures["FF"] > 100
    assert 1 < figures["latency"] < 50
    # The user's own model has the ranges that were exported.
    got = tfaccel.fpga.emulate(tmp_path / "out", x)
    np.testing.assert_allclose(got, model.predict(x, verbose=0), atol=1e-6)


@pytest.mark.exhaustive
def test_ranges_that_are_not_given_are_those_of_training_and_the_check(
    digits: Digits, tmp_path: Path
) -> None:
    report = tfaccel.export_fpga(
        trained(mlp, digits), tmp_path / "out", check=digits.x_held_out, estimate=False
    )
    assert report.verdict == "bit-exact on 600 of 600 rows"
    assert "widened by the rows of the check" in report.notes[0]


def test_made_up_rows_leave_no_mark_in_the_user_s_model(tmp_path: Path) -> None:
    model = tfaccel.fpga.quantize(mlp())
    tfaccel.fpga.calibrate(model, np.full((4, 8, 8, 1), 0.25, np.float32))
    before = [one.copy() for one in model.get_weights()]
    prepared = prepare(model, tmp_path / "out", Settings(), check=None, calibrate=None)
    assert "widened by made-up rows" in prepared.notes[0]
    after = prepared.device.get_weights()
    assert any((one != other).any() for one, other in zip(before, after, strict=True))
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_quantized_model_that_was_saved_is_exported_by_the_command(
    digits: Digits, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = tfaccel.fpga.quantize(mlp())
    model.compile(keras.optimizers.Adam(5e-3), "sparse_categorical_crossentropy")
    model.fit(digits.x, digits.y, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "check.npz", x=digits.x_held_out, y=digits.y_held_out)
    np.savez(tmp_path / "train.npz", x=digits.x)
    words = ["fpga", "export", str(tmp_path / "model.keras"), "--out", str(tmp_path / "out")]
    files = ["--check", str(tmp_path / "check.npz"), "--calibrate", str(tmp_path / "train.npz")]
    assert tfaccel_command([*words, *files, "--no-estimate", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["verdict"] == "bit-exact on 600 of 600 rows"
    assert told["quantized"]


def test_a_counterpart_starts_with_the_weights_and_names_of_the_plain_model() -> None:
    plain = mlp()
    plain.get_layer("norm").moving_mean.assign(np.arange(16.0))
    quantized = tfaccel.fpga.quantize(plain, beta=1e-7)
    assert [one.name for one in quantized.layers] == [one.name for one in plain.layers]
    for name in ("hidden", "scores"):
        for part in ("kernel", "bias"):
            np.testing.assert_array_equal(
                getattr(quantized.get_layer(name), part), getattr(plain.get_layer(name), part)
            )
    np.testing.assert_array_equal(quantized.get_layer("norm").moving_mean, np.arange(16.0))
    x = np.random.default_rng(0).normal(size=(20, 8, 8, 1)).astype("float32")
    tfaccel.fpga.calibrate(quantized, x)
    off = quantized.predict(x, verbose=0) - plain.predict(x, verbose=0)
    assert 0 < np.abs(off).max() < 0.2
    assert float(quantized.get_layer("hidden").beta) == pytest.approx(1e-7)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: layers.LSTM(3, name="it"),
            r"it \(LSTM\) has no quantized counterpart; use one of Dense",
        ),
        (lambda: layers.GlobalMaxPooling1D(name="it"), "or export the model unquantized"),
        (
            lambda: layers.Dense(3, activation="tanh", name="it"),
            "has activation tanh; expected relu",
        ),
        (
            lambda: layers.Dense(3, dtype="mixed_bfloat16", name="it"),
            "in mixed_bfloat16; expected float32",
        ),
        (lambda: layers.Conv1D(4, 3, groups=2, name="it"), "groups=2"),
    ],
)
def test_a_layer_without_counterpart_is_refused_by_name(make: Any, said: str) -> None:
    model = keras.Sequential([keras.Input((8, 4)), make(), layers.Flatten(), layers.Dense(2)])
    with pytest.raises(FpgaError, match=said):
        tfaccel.fpga.quantize(model)


def test_what_a_quantized_model_cannot_have_is_refused(tmp_path: Path) -> None:
    model = tfaccel.fpga.quantize(mlp())
    with pytest.raises(FpgaError, match="only logits are bit-exact"):
        tfaccel.export_fpga(model, tmp_path / "out", softmax="device")
    with pytest.raises(FpgaError, match="Quartus backend fails on quantized models"):
        tfaccel.export_fpga(model, tmp_path / "out", backend="Quartus")
    with pytest.raises(FpgaError, match="expected 'io_parallel'"):
        tfaccel.export_fpga(model, tmp_path / "out", io_type="io_stream")
    with pytest.raises(FpgaError, match="nothing to sweep over"):
        tfaccel.fpga.sweep(model, tmp_path / "out", ["fixed<8,4>"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "workers"),
    [
        (["--strategy=mirrored", "--device_type=cpu", "--devices=2"], 1),
        pytest.param(["--strategy=one_device"], 1, marks=pytest.mark.exhaustive),
        pytest.param(
            ["--strategy=model_parallel", "--mesh=batch=2,model=2", "--device_type=cpu"],
            1,
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(["--strategy=multi_worker_mirrored"], 2, marks=pytest.mark.exhaustive),
    ],
    ids=["mirrored", "one_device", "model_parallel", "multi_worker_mirrored"],
)
def test_the_example_ends_bit_exact(flags: list[str], workers: int, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = run_child(
        ["examples/digits_fpga.py", *flags, "--epochs=10", f"--out={out}"],
        workers=workers,
        full=True,
    )
    assert said.strip().splitlines()[-1] == "bit-exact on 360 of 360 rows"
    told = json.loads((out / "report.json").read_text())
    assert told["check"]["accuracy"] >= 0.93
    assert re.search(r"accuracy 0\.9\d+ emulated", said)
    for rank in range(1, workers):
        other = json.loads((tmp_path / f"out.worker-{rank}" / "report.json").read_text())
        assert other["check"] == told["check"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("options", [{"strategy": "distributed_arithmetic"}, {"backend": "Vivado"}])
def test_other_ways_to_firmware_are_bit_exact_too(
    options: dict[str, str], digits: Digits, tmp_path: Path
) -> None:
    model = trained(mlp, digits)
    report = tfaccel.export_fpga(
        model, tmp_path / "out", check=digits.x, calibrate=digits.x, **options
    )
    assert report.verdict == f"bit-exact on {len(digits.x)} of {len(digits.x)} rows"
    assert (report.figure("multipliers") is None) == ("strategy" in options)
