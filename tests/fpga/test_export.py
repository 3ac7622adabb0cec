"""Real exports: hls4ml converts, g++ compiles, and the emulation is compared with Keras."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import tfaccel
from tests.fpga.conftest import Digits
from tests.support import run_child
from tfaccel.errors import FpgaCheckError, FpgaError, FpgaTimeoutError
from tfaccel.fpga import convert, precision_sweep
from tfaccel.fpga.export_settings import Settings
from tfaccel.fpga.report import Report

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("needs_hls4ml")]


@pytest.fixture(scope="module")
def exported(classifier: Any, digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The classifier with softmax on the host, as by default."""
    out = tmp_path_factory.mktemp("exported") / "out"
    return tfaccel.export_fpga(classifier, out, check=(digits.x_held_out, digits.y_held_out))


def test_a_plain_model_agrees_with_keras(exported: Report) -> None:
    check = exported.check
    assert exported.passed
    assert check.rows == 600
    assert check.agreement >= 0.99
    assert check.maximum < 0.3
    assert check.accuracy == pytest.approx(check.keras_accuracy, abs=0.01)
    assert check.accuracy > 0.85
    assert exported.figure("multiplications").value <= 64 * 24 + 24 * 10
    assert {one.kind for one in exported.figures} == {"estimated"}


def test_the_directory_emulates_with_softmax_on_the_host(
    exported: Report, classifier: Any, digits: Digits
) -> None:
    got = tfaccel.fpga.emulate(exported.directory, digits.x_held_out)
    want = classifier.predict(digits.x_held_out, verbose=0)
    assert np.abs(got - want).max() < 0.05
    np.testing.assert_allclose(got.sum(axis=1), 1)
    with pytest.raises(FpgaError, match=r"rows of shape \(3,\); expected \(8, 8, 1\)|\(64,\)"):
        tfaccel.fpga.emulate(exported.directory, np.ones((2, 3)))


def test_the_user_s_model_stays_as_it_was(
    exported: Report, classifier: Any, digits: Digits
) -> None:
    assert exported.softmax == "host"
    np.testing.assert_allclose(
        classifier.predict(digits.x_held_out, verbose=0).sum(axis=1), 1, atol=1e-5
    )


@pytest.mark.exhaustive
def test_softmax_by_hls4ml_s_defaults_loses_the_accuracy(
    classifier: Any, digits: Digits, tmp_path: Path
) -> None:
    """The trap: no error, and most answers wrong."""
    import hls4ml

    config = hls4ml.utils.config_from_keras_model(
        classifier, granularity="name", backend="Vitis", default_precision="fixed<16,6>"
    )
    graph = hls4ml.converters.convert_from_keras_model(
        classifier, output_dir=str(tmp_path / "trap"), hls_config=config, backend="Vitis"
    )
    graph.compile()
    trapped = graph.predict(digits.x_held_out)
    assert (trapped.argmax(1) == digits.y_held_out).mean() < 0.5


def test_softmax_on_the_device_keeps_the_accuracy(
    classifier: Any, digits: Digits, tmp_path: Path
) -> None:
    report = tfaccel.export_fpga(
        classifier,
        tmp_path / "out",
        softmax="device",
        check=(digits.x_held_out, digits.y_held_out),
        estimate=False,
    )
    assert report.check.accuracy > 0.85
    assert report.check.agreement >= 0.99


def test_argmax_on_the_device_marks_the_class(
    classifier: Any, digits: Digits, tmp_path: Path
) -> None:
    report = tfaccel.export_fpga(
        classifier, tmp_path / "out", softmax="argmax", check=digits.x_held_out, estimate=False
    )
    assert report.check.exact == round(report.check.agreement * report.check.rows) >= 594
    marks = tfaccel.fpga.emulate(tmp_path / "out", digits.x_held_out[:9])
    assert sorted(np.unique(marks)) == [0, 1]


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "options",
    [
        {"backend": "Vivado"},
        {"backend": "VivadoAccelerator"},
        {"backend": "Quartus"},
        {"backend": "Catapult"},
        {"io_type": "io_stream"},
        {"reuse_factor": 8, "strategy": "resource"},
    ],
    ids=str,
)
def test_every_backend_gives_the_same_numbers(
    options: dict[str, Any], exported: Report, classifier: Any, digits: Digits, tmp_path: Path
) -> None:
    report = tfaccel.export_fpga(
        classifier, tmp_path / "out", check=(digits.x_held_out, digits.y_held_out), **options
    )
    assert report.check == exported.check
    multiplications = report.figure("multiplications").value
    assert report.figure("multipliers").value == multiplications / options.get("reuse_factor", 1)


@pytest.mark.exhaustive
def test_several_inputs_and_outputs_are_compared_each(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    given = keras.Input((4,), name="first"), keras.Input((3,), name="second")
    both = keras.layers.Concatenate()([keras.layers.Dense(4)(one) for one in given])
    ends = keras.layers.Dense(3, activation="softmax")(both), keras.layers.Dense(1)(both)
    model = keras.Model(given, ends)
    random = np.random.default_rng(0)
    x = [random.normal(size=(90, size)).astype("float32") for size in (4, 3)]
    report = tfaccel.export_fpga(model, tmp_path / "out", check={"x0": x[0], "x1": x[1]})
    assert report.check.agreement >= 0.99
    got, want = tfaccel.fpga.emulate(tmp_path / "out", x), model.predict(x, verbose=0)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, atol=0.03)


def test_a_failing_check_fails_and_names_the_layer(
    classifier: Any, digits: Digits, tmp_path: Path
) -> None:
    with pytest.raises(FpgaCheckError, match=r"^failed: .* rows agree .*; expected 99") as caught:
        tfaccel.export_fpga(
            classifier, tmp_path / "out", precision="fixed<5,3>", check=digits.x_held_out
        )
    report = caught.value.report
    assert not report.passed
    assert [one.name for one in report.check.layers] == ["hidden", "scores"]
    assert max(one.maximum for one in report.check.layers) > 0.5
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["check"]["layers"][0]["name"] == "hidden"
    assert not (tmp_path / "out" / "trace").exists()


@pytest.mark.exhaustive
def test_a_failing_check_fails_the_command_and_generated_rows_are_unverified(saved: Path) -> None:
    start = ["-m", "tfaccel.cli", "fpga", "export", str(saved / "model.keras"), "--json"]
    check = ["--check", str(saved / "check.npz"), "--min-agreement", "1", "--precision"]
    said = run_child(
        [*start, "--out", str(saved / "a"), *check, "fixed<6,3>", "--no-estimate"],
        codes=(1,),
        full=True,
    )
    assert "tfaccel fpga: failed:" in said
    said = run_child([*start, "--out", str(saved / "b"), "--no-estimate"], full=True)
    told = json.loads(said[said.index("{\n") :])
    assert told["check"]["status"] == "unverified"
    assert told["verdict"].startswith("unverified: ")


@pytest.mark.exhaustive  # two exports; test_parts.py has what a sweep makes of them
def test_a_sweep_is_a_table_of_accuracy_against_resources(
    classifier: Any, digits: Digits, tmp_path: Path
) -> None:
    found = tfaccel.fpga.sweep(
        classifier,
        tmp_path,
        ["fixed<6,3>", "fixed<12,6>"],
        check=(digits.x_held_out, digits.y_held_out),
    )
    narrow, wide = found.reports
    assert narrow.check.agreement < wide.check.agreement
    assert narrow.check.status == "failed"
    assert (tmp_path / "fixed_12_6" / "report.json").is_file()
    assert (found.plot is None) == found.note.startswith("no plot")
    costs = [precision_sweep.bit_operations(one) for one in found.reports]
    count = wide.figure("multiplications").value
    assert costs == [36 * count, 144 * count]


def test_every_setting_is_in_the_project(saved: Path, tmp_path: Path) -> None:
    settings = Settings(
        part="xcku115-flvb2104-2-i",
        clock_ns=3.5,
        precision="fixed<14,5>",
        io_type="io_stream",
        reuse_factor=8,
        strategy="resource",
    )
    project = convert.convert(saved / "model.keras", tmp_path / "out", settings, tmp_path / "log")
    script = (tmp_path / "out" / "project.tcl").read_text()
    assert 'set part "xcku115-flvb2104-2-i"' in script
    assert "set clock_period 3.5" in script
    firmware = tmp_path / "out" / "firmware"
    assert "ap_fixed<14,5>" in (firmware / "defines.h").read_text()
    assert "hls::stream" in (firmware / "firmware.cpp").read_text()
    assert "strategy = nnet::resource" in (firmware / "parameters.h").read_text()
    assert {one.reuse_factor for one in project.nodes if one.multiplications} == {8}


@pytest.mark.parametrize(
    ("make", "shape", "count"),
    [
        (lambda: layers.Dense(6), (4,), 4 * 6),
        (lambda: layers.Dense(6), (8, 4), 8 * 4 * 6),
        (lambda: layers.EinsumDense("abc,cd->abd", (8, 6)), (8, 4), 8 * 4 * 6),
        (lambda: layers.EinsumDense("abc,bcd->abd", (8, 6)), (8, 4), 8 * 4 * 6),
        (lambda: layers.Conv1D(3, 3), (8, 4), 6 * 3 * 4 * 3),
        (lambda: layers.Conv2D(3, 3), (6, 6, 2), 16 * 9 * 2 * 3),
        (lambda: layers.DepthwiseConv2D(3), (6, 6, 2), 16 * 9 * 2),
        (lambda: layers.LSTM(5), (8, 4), 8 * (4 + 5) * 20),
        (lambda: layers.GRU(5), (8, 4), 8 * (4 + 5) * 15),
        (lambda: layers.Bidirectional(layers.LSTM(5)), (8, 4), 2 * 8 * (4 + 5) * 20),
        (lambda: layers.BatchNormalization(), (8, 4), 8 * 4),
        (lambda: layers.ReLU(), (8, 4), 0),
    ],
)
def test_multiplications_are_counted(
    make: Any, shape: tuple[int, ...], count: int, tmp_path: Path
) -> None:
    model = keras.Sequential([keras.Input(shape), make()])
    model.save(tmp_path / "model.keras")
    project = convert.convert(
        tmp_path / "model.keras", tmp_path / "out", Settings(), tmp_path / "log"
    )
    assert sum(one.multiplications for one in project.nodes) == count


def test_an_error_of_g_plus_plus_is_one_line_with_the_log(tmp_path: Path) -> None:
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, activation="gelu", name="curved")]
    )
    model.save(tmp_path / "model.keras")
    log = tmp_path / "log"
    project = convert.convert(tmp_path / "model.keras", tmp_path / "out", Settings(), log)
    with pytest.raises(FpgaError, match="layer curved_gelu does not compile") as caught:
        convert.compile_project(project, Settings(), log)
    assert caught.value.log == log
    assert "gelu" in log.read_text()
    assert "error:" in log.read_text()
    assert "\n" not in str(caught.value)


def test_what_hls4ml_throws_is_one_error_that_names_the_layer(tmp_path: Path) -> None:
    model = keras.Sequential(
        [keras.Input((4, 4)), keras.layers.LayerNormalization(axis=-1, name="norm")]
    )
    model.save(tmp_path / "model.keras")
    with pytest.raises(FpgaError, match="hls4ml cannot translate layer norm") as caught:
        convert.convert(tmp_path / "model.keras", tmp_path / "out", Settings(), tmp_path / "log")
    assert "Traceback" in (tmp_path / "log").read_text()
    assert caught.value.log == tmp_path / "log"


def test_a_compiler_that_is_not_done_in_time_is_ended(classifier: Any, tmp_path: Path) -> None:
    with pytest.raises(FpgaTimeoutError, match=r"g\+\+ exceeded its timeout of 0.1 s"):
        tfaccel.export_fpga(classifier, tmp_path / "out", timeout_s=0.1)
    assert (tmp_path / "out" / "export.log").is_file()


@pytest.mark.exhaustive
def test_distributed_arithmetic_is_ended_too(classifier: Any, saved: Path) -> None:
    words = ["--out", str(saved / "da"), "--strategy", "distributed_arithmetic"]
    said = run_child(
        [
            *("-m", "tfaccel.cli", "fpga", "export", str(saved / "model.keras")),
            *words,
            *("--timeout", "1"),
        ],
        codes=(3,),
        full=True,
    )
    assert "hls4ml's distributed arithmetic exceeded its timeout of 1 s" in said


def test_an_export_takes_the_place_of_an_earlier_one_and_of_nothing_else(
    exported: Report, classifier: Any, tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(FpgaError, match="holds something else"):
        tfaccel.export_fpga(classifier, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "keep"
    again = tmp_path / "again"
    shutil.copytree(exported.directory, again)
    (again / "mine.txt").write_text("keep")
    with pytest.raises(FpgaError, match=r"holds something else \(mine.txt\)"):
        tfaccel.export_fpga(classifier, again)
    assert (again / "report.json").is_file()
    (again / "mine.txt").unlink()
    for _ in range(2):  # one that failed is replaced as well
        with pytest.raises(FpgaTimeoutError):
            tfaccel.export_fpga(classifier, again, timeout_s=0.1)
        assert not (again / "report.json").exists()
