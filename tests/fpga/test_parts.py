"""The parts that need neither hls4ml nor g++."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

import tfaccel
from tests.support import run_child
from tfaccel.cli import main as tfaccel_command
from tfaccel.errors import FpgaCheckError, FpgaError, FpgaTimeoutError
from tfaccel.fpga import estimate, export, optional_imports, precision_sweep, process, verify
from tfaccel.fpga.convert import Node, failing_layer
from tfaccel.fpga.data import generated, rows_of
from tfaccel.fpga.export_settings import Settings
from tfaccel.fpga.layer import Layer, layers_of
from tfaccel.fpga.report import Check, Figure, Report
from tfaccel.fpga.softmax import logits_of, on_device, softmax, without_softmax

PLAIN = Report(
    Path("out"),
    "m",
    False,
    "Vitis",
    "fixed<16,6>",
    "host",
    Check("passed", 100, 3, 0.995, "argmax", 0.12, 0.99),
    (Figure("multiplications", 50, "estimated"),),
)


# --- settings and data ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"backend": "oneAPI"}, "backend='oneAPI'; expected one of Vitis"),
        ({"strategy": "mirrored"}, "strategy='mirrored'; expected one of latency"),
        ({"softmax": "nowhere"}, "softmax='nowhere'; expected one of host"),
        ({"precision": "int8"}, "precision='int8'; expected a fixed-point type"),
        ({"precision": "fixed<100,6>"}, "of 2 to 64 bits"),
        ({"reuse_factor": 0}, "reuse_factor=0"),
        ({"reuse_factor": 2.5}, "reuse_factor=2.5; expected a positive integer"),
        ({"timeout_s": 0}, "timeout_s=0; expected a number above 0"),
        ({"timeout_s": None}, "timeout_s=None; expected a number above 0"),
        ({"clock_ns": "5"}, "clock_ns='5'; expected a number above 0"),
        ({"clock_ns": math.nan}, "clock_ns=nan; expected a number above 0"),
        ({"precision": 16}, "precision=16; expected a fixed-point type"),
        ({"precision": "ufixed<16,6>"}, "precision='ufixed<16,6>'; expected a fixed-point type"),
        ({"precision": "fixed<16,6,RND>"}, "expected a fixed-point type"),
        ({"part": ""}, "part=''; expected an FPGA's name such as xcu250-figd2104-2L-e"),
        ({"part": "xcu250; exit"}, "part='xcu250; exit'; expected an FPGA's name"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict, said: str) -> None:
    with pytest.raises(FpgaError) as caught:
        Settings(**wrong)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rows_are_read_from_what_users_have(tmp_path: Path) -> None:
    x, y = np.ones((3, 4)), np.array([0, 2, 1])
    np.savez(tmp_path / "both.npz", x=x, y=y)
    for data in (
        (x, y),
        {"x": x, "y": y},
        tmp_path / "both.npz",
        (x, keras.utils.to_categorical(y)),
    ):
        rows = rows_of(data, [(None, 4)])
        np.testing.assert_array_equal(rows.x[0], x)
        np.testing.assert_array_equal(rows.y, y)
        assert not rows.generated
    two = rows_of({"x0": x, "x1": 2 * x}, [(None, 4), (None, 4)])
    assert [one[0, 0] for one in two.x] == [1, 2]
    many = rows_of({f"x{n}": n * x for n in range(12)}, 12 * [(None, 4)])
    assert [one[0, 0] for one in many.x] == list(range(12))
    assert len(rows_of([x, x], [(None, 4), (None, 4)]).x) == 2


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (np.ones((3, 5)), "rows of shape [(3, 5)]; expected [(None, 4)]"),
        ((np.ones((3, 4)), np.ones(2)), "labels of shape (2,); expected one for each of 3 rows"),
        ({"inputs": np.ones((3, 4))}, "arrays inputs; expected x"),
        (np.ones((0, 4)), "[0] rows"),
        ("nowhere.npz", "nowhere.npz cannot be read"),
        ([[1, 2], [1]], "rows that are not an array of numbers"),
        (np.full((3, 4), "1"), "rows that are not an array of numbers"),
        (np.ones((3, 4)) * 1j, "rows that are not an array of numbers"),
        ((np.ones((3, 4)), 5), "labels of shape (); expected one for each of 3 rows"),
        (np.array([[1, 2, 3, np.nan]]), "1 of 4 numbers in the rows are not finite in float32"),
        (np.full((1, 4), 1e39), "4 of 4 numbers in the rows are not finite in float32"),
    ],
)
def test_rows_that_do_not_fit_are_refused(data: object, said: str) -> None:
    with pytest.raises(FpgaError) as caught:
        rows_of(data, [(None, 4)])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("held", [b"", b"PK\x03\x04 cut", b"text", "array"])
def test_a_file_that_is_no_npz_is_one_clear_line(held: object, tmp_path: Path) -> None:
    path = tmp_path / "held_out.npz"
    if isinstance(held, bytes):
        path.write_bytes(held)
    else:
        with path.open("wb") as file:
            np.save(file, np.ones((3, 4)))  # the form of .npy, whatever it is called
    with pytest.raises(FpgaError, match=r"held_out.npz cannot be read .*; expected an .npz file"):
        rows_of(path, [(None, 4)])


def test_targets_of_a_regression_are_no_class_numbers() -> None:
    x = np.ones((3, 4))
    for y in (np.random.default_rng(0).normal(size=(3, 2)), np.array([[1, 1], [0, 1], [1, 0]])):
        assert rows_of((x, y), [(None, 4)]).y is None
    assert rows_of((x, np.array([0.5, 1, 2])), [(None, 4)]).y is None
    for y in (np.eye(3), [0.0, 1.0, 2.0], [[0], [1], [2]]):
        np.testing.assert_array_equal(rows_of((x, y), [(None, 4)]).y, [0, 1, 2])


def test_generated_rows_are_always_the_same_and_indices_for_an_embedding() -> None:
    first, second = (generated([Layer("d", "Dense")], [(None, 4)]).x[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.shape == (256, 4)
    layer = Layer("e", "Embedding", config={"input_dim": 7})
    assert set(np.unique(generated([layer], [(None, 4)]).x[0])) == set(range(7))


# --- softmax --------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["activation", "Softmax", "Activation", "none"])
def test_softmax_is_removed_in_every_form(form: str) -> None:
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(3, activation="softmax" if form == "activation" else None)]
    if form == "Softmax":
        layers.append(keras.layers.Softmax())
    if form == "Activation":
        layers.append(keras.layers.Activation("softmax"))
    given = keras.Input((4,))
    output = given
    for layer in layers:
        output = layer(output)
    model = keras.Model(given, output)
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    before = model.predict(x, verbose=0)
    logits, host = without_softmax(model)
    after = logits.predict(x, verbose=0)
    assert host == (form != "none",)
    np.testing.assert_allclose(softmax(after) if host[0] else after, before, atol=1e-6)
    np.testing.assert_allclose(after, x @ layers[0].kernel.numpy(), atol=1e-5)


def test_on_the_device_the_logits_of_each_softmax_are_pinned_and_its_table_is_larger() -> None:
    given = keras.Input((4,), name="given")
    first = keras.layers.Dense(3, activation="relu", name="first")(given)
    second = keras.layers.Dense(3, name="second")(given)
    kept = keras.layers.Dropout(0.1, name="kept")(second)
    ends = [
        keras.layers.Softmax(name="end")(first),
        keras.layers.Activation("softmax", name="last")(kept),
        keras.layers.Dense(3, activation="softmax", name="third")(given),
    ]
    logits = logits_of(keras.Model(given, ends))
    assert logits == {"end": ["first"], "last": ["kept", "second"]}
    names = ["first", "first_relu", "second", "kept", "end", "last", "third", "third_softmax"]
    config = {"LayerName": {name: {"Precision": {"result": "auto"}} for name in names}}
    for name in ("end", "last", "third_softmax"):
        config["LayerName"][name]["Precision"]["exp_table"] = "fixed<18,8>"
    on_device(config, "device", logits)
    pinned = {n for n in names if config["LayerName"][n]["Precision"]["result"] == "fixed<16,6>"}
    assert pinned == {"first_relu", "kept", "second", "third"}
    assert {n for n in names if config["LayerName"][n].get("TableSize") == 4096} == {
        "end",
        "last",
        "third_softmax",
    }


# --- the check ------------------------------------------------------------------------------


def test_agreement_counts_rows_and_exactness_bits() -> None:
    want = np.array([[1.0, 2.0], [4.0, 3.0], [0.0, 1.0], [5.0, 1.0]])
    got = want.copy()
    got[0] = [2.5, 2.0]
    got[1, 0] += 1e-6
    check = verify.compare([got], [want], y=np.array([1, 0, 1, 1]), min_agreement=0.75)
    assert (check.rows, check.exact, check.agreement, check.maximum) == (4, 2, 0.75, 1.5)
    assert (check.accuracy, check.keras_accuracy) == (0.5, 0.75)
    assert check.status == "passed"
    assert verify.compare([got], [want], min_agreement=0.76).status == "failed"


def test_a_quantized_model_must_be_bit_identical() -> None:
    want = np.array([[1.0, 2.0], [4.0, 3.0]])
    assert verify.compare([want], [want], quantized=True).status == "passed"
    assert verify.compare([want + 1e-9], [want], quantized=True).status == "failed"


def test_a_single_number_agrees_within_a_hundredth_of_the_range() -> None:
    want = np.array([[0.0], [10.0], [5.0]])
    check = verify.compare([np.array([[0.05], [10.2], [5.0]])], [want])
    assert check.agreement == pytest.approx(2 / 3)
    assert check.measure == "within 1% of the range"


def test_numbers_that_are_no_scores_agree_within_a_hundredth_of_the_range_too() -> None:
    want = np.array([[0.0, 1.0], [10.0, 20.0], [5.0, 6.0]])
    got = want + np.array([[0, 0.1], [0, 0.3], [-0.1, 0]])
    for end in ("linear", "sigmoid"):
        check = verify.compare([got], [want], ends=[end])
        assert (check.agreement, check.measure) == (pytest.approx(2 / 3), "within 1% of the range")
    assert verify.compare([got], [want], ends=["softmax"]).agreement == 1
    assert verify.compare([got], [want], y=np.array([1, 1, 1])).measure == "argmax"


def test_each_output_is_compared_on_its_own_terms_and_the_worst_counts() -> None:
    scores, numbers = np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([[1.0], [3.0]])
    check = verify.compare(
        [scores * 0.9, numbers + np.array([[0.5], [0]])],
        [scores, numbers],
        ends=["softmax", "linear"],
    )
    assert (check.agreement, check.measure) == (0.5, "within 1% of the range")


def test_a_row_agrees_when_all_its_places_do() -> None:
    want = np.eye(4)[[[0, 1, 2], [3, 2, 1]]]
    got = want.copy()
    got[0, 2] = [1, 0, 0, 0]
    assert verify.compare([got], [want], ends=["softmax"]).agreement == 0.5


def test_two_classes_in_one_number_have_an_accuracy() -> None:
    want, y = np.array([[0.2], [0.9], [0.4]]), np.array([0, 1, 1])
    check = verify.compare([want], [want], ends=["sigmoid"], y=y)
    assert check.accuracy == check.keras_accuracy == pytest.approx(2 / 3)
    assert verify.compare([want], [want], ends=["linear"], y=y).accuracy is None


def test_scores_that_are_none_do_not_agree() -> None:
    want = np.full((3, 2), np.nan)
    assert verify.compare([np.zeros((3, 2))], [want], ends=["softmax"]).agreement == 0


def test_nothing_is_passed_on_generated_rows() -> None:
    check = verify.compare([np.eye(3)], [np.eye(3)], generated=True)
    report = dataclasses.replace(PLAIN, check=check)
    assert check.status == "unverified"
    assert not report.passed
    assert report.verdict.startswith("unverified: ")


def test_a_number_that_is_none_is_the_largest_error() -> None:
    assert verify.compare([np.array([[np.nan, 1.0]])], [np.ones((1, 2))]).maximum == np.inf


def test_the_json_report_is_complete() -> None:
    told = json.loads(PLAIN.to_json())
    assert told["verdict"] == "99.50% of 100 rows agree (argmax), maximum error 0.12"
    assert told["figures"][0]["kind"] == "estimated"
    assert told["passed"] is True


def test_every_figure_is_printed_with_how_it_is_known(capsys: pytest.CaptureFixture) -> None:
    figures = (Figure("LUT", 1200, "estimated"), Figure("FF", 30, "synthesised", "", "vitis-run"))
    layers = (verify.LayerError("hidden", 0.25, 3.5),)
    check = dataclasses.replace(PLAIN.check, status="failed", layers=layers)
    dataclasses.replace(PLAIN, figures=figures, check=check).show()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["│", "LUT", "│", "1,200", "│", "estimated", "│", "│"] in rows
    assert ["│", "FF", "│", "30", "│", "synthesised", "│", "vitis-run", "│"] in rows
    assert ["│", "hidden", "│", "0.25", "│", "3.5", "│"] in rows
    assert rows[-1][0] == "failed:"


# --- tools ----------------------------------------------------------------------------------


def ended(state: Path) -> bool:
    """The system takes a moment to end what was killed; a minute is beyond doubt."""
    for _ in range(600):
        try:
            if state.read_text().split()[2] in "ZX":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.1)
    return False


def test_a_tool_that_takes_too_long_is_ended_with_all_it_started(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time; "
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        "print(p.pid, flush=True); time.sleep(600)"
    )
    log = tmp_path / "log"
    with pytest.raises(FpgaTimeoutError, match="the tool exceeded its timeout of 3 s") as caught:
        process.run([sys.executable, "-c", code], what="the tool", log=log, limit_s=3, cwd=tmp_path)
    assert caught.value.log == log
    assert ended(Path(f"/proc/{log.read_text().split()[0]}/stat"))


def test_a_tool_that_fails_leaves_its_words_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(FpgaError, match="the tool failed with exit code 4"):
        process.run(
            ["bash", "-c", "echo why; exit 4"], what="the tool", log=log, limit_s=60, cwd=tmp_path
        )
    assert log.read_text() == "why\n"
    with pytest.raises(FpgaError, match="the tool was ended by SIGSEGV"):
        process.run(
            ["bash", "-c", "kill -SEGV $$"], what="the tool", log=log, limit_s=60, cwd=tmp_path
        )


def test_the_compiler_names_the_layer() -> None:
    nodes = [Node("first", 2, (4,)), Node("second", 4, (4,))]
    assert failing_layer("a.h:1: error: no 'gelu', with CONFIG_T = config4", nodes) == "second"
    assert failing_layer("x: error: no\n  9 | nnet::gelu(a, b); // first\n", nodes) == "first"
    assert failing_layer("ld: error: out of memory", nodes) == ""


def test_figures_come_from_the_tool_s_report() -> None:
    told = {"CSynthesisReport": {"LUT": "1200", "FF": "340", "WorstLatency": "12", "DSP": "undef"}}
    figures = estimate.synthesised(told, "vitis-run")
    assert [(f.name, f.value, f.kind) for f in figures] == [
        ("LUT", 1200, "synthesised"),
        ("FF", 340, "synthesised"),
        ("latency, worst", 12, "synthesised"),
    ]


def test_multipliers_follow_the_reuse_factor() -> None:
    figures = estimate.multipliers([Node("a", 1, (4,), 100, 8), Node("b", 2, (4,))])
    assert [one.value for one in figures] == [100, 13]


def test_building_without_the_tool_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    with pytest.raises(FpgaError, match="vitis-run is not on the PATH"):
        tfaccel.export_fpga(model, tmp_path / "out", build=True)
    assert not (tmp_path / "out").exists()


def test_a_missing_compiler_is_an_error_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "hls4ml", type(sys)("hls4ml"))
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    with pytest.raises(FpgaError, match=r"g\+\+ is not on the PATH.*install g\+\+ 10 or newer"):
        tfaccel.export_fpga(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_keras_that_fails_on_the_rows_is_one_line() -> None:
    given = keras.Input((2,))
    model = keras.Model(given, keras.layers.Embedding(10, 3)(given))
    with pytest.raises(FpgaError, match=r"Keras fails on the rows .*12 is not in \[0, 10\)"):
        export.reference(model, [np.array([[1.0, 12.0]], np.float32)])


def test_what_is_not_installed_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hls4ml", None)
    with pytest.raises(FpgaError, match=r"pip install 'tfaccel\[fpga\]'"):
        optional_imports.require("hls4ml")


def test_the_room_opens_without_tensorflow_and_hls4ml() -> None:
    code = (
        "import sys, tfaccel.fpga, tfaccel.fpga.command, tfaccel.fpga.export, tfaccel.fpga.qat; "
        "print(sorted({'tensorflow', 'keras', 'hls4ml', 'hgq', 'da4ml'} & set(sys.modules)))"
    )
    assert run_child(["-c", code]).strip() == "[]"


# --- the command and the sweep --------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.keras", "--out", "o"], "nowhere.keras is no .keras file"),
        (["model.keras", "--out", "o", "--precision", "half"], "precision='half'; expected"),
        (["model.keras", "--out", "o", "--reuse-factor", "0"], "reuse_factor=0"),
        (["model.keras", "--out", "o", "--check", "no.npz"], "no.npz cannot be read"),
        (["model.keras", "--out", "."], "holds something else (model.keras); expected a new"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    words: list[str],
    said: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "hls4ml", type(sys)("hls4ml"))
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]).save("model.keras")
    assert tfaccel_command(["fpga", "export", *words]) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("tfaccel fpga: error: ")
    assert said in error


def test_a_sweep_without_matplotlib_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(precision_sweep, "export_fpga", lambda *_, **__: PLAIN)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    found = precision_sweep.sweep(model, tmp_path, ["fixed<8,4>", "fixed<16,6>"])
    assert (len(found.reports), found.plot) == (2, None)
    found.show()
    said = capsys.readouterr().out
    assert "matplotlib is not installed" in said
    assert "estimated cost" in said
    assert "99.50%" in said
    assert "12,800" in said  # 50 multiplications of 16 bits


@pytest.mark.parametrize("labelled", [True, False])
def test_the_plot_sets_accuracy_against_cost(labelled: bool, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="tfaccel[fpga] brings matplotlib")
    check = dataclasses.replace(PLAIN.check, accuracy=0.9 if labelled else None)
    reports = [
        dataclasses.replace(PLAIN, check=check, precision=one)
        for one in ("fixed<8,4>", "fixed<16,6>")
    ]
    axes = precision_sweep.draw(reports).axes[0]
    costs, scores = axes.lines[0].get_data()
    assert list(costs) == [50 * 8**2, 50 * 16**2]
    assert list(scores) == [0.9 if labelled else 0.995] * 2
    assert [one.get_text() for one in axes.texts] == ["fixed<8,4>", "fixed<16,6>"]
    assert "estimated" in axes.get_xlabel()
    assert axes.get_ylabel().startswith("accuracy" if labelled else "agreement")
    precision_sweep.draw(reports).savefig(tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("precisions_", "options", "said"),
    [
        ([], {}, "no precision; expected one or more"),
        (["fixed<8,4>", "fixed<8, 4>"], {}, "expected each once"),
        (["fixed<8,4>"], {"estimate": False}, "expected estimate=True"),
        (["fixed<8,4>"], {"strategy": "distributed_arithmetic"}, "'latency' or 'resource'"),
    ],
)
def test_a_sweep_that_would_compare_nothing_is_refused(
    precisions_: list[str], options: dict, said: str, tmp_path: Path
) -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    with pytest.raises(FpgaError, match=said):
        precision_sweep.sweep(model, tmp_path / "out", precisions_, **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("statuses", "code"), [("failed passed", 0), ("failed failed", 1)])
def test_a_sweep_fails_when_no_precision_will_do(
    statuses: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter(statuses.split())

    def export(*_: object, **__: object) -> Report:
        check = dataclasses.replace(PLAIN.check, status=next(left))
        report = dataclasses.replace(PLAIN, check=check)
        if not report.passed:
            raise FpgaCheckError(report.verdict, report)
        return report

    monkeypatch.setattr(precision_sweep, "export_fpga", export)
    model = tmp_path / "model.keras"
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]).save(model)
    words = ["--out", str(tmp_path), "--precision", "fixed<8,4>,fixed<16,6>"]
    assert tfaccel_command(["fpga", "export", str(model), *words]) == code


@pytest.mark.parametrize(
    ("softmax", "options", "said"),
    [
        (
            True,
            {"softmax": "device"},
            r"scores \(Dense\): softmax='device' of shape \(None, 8, 3\)",
        ),
        (True, {"softmax": "argmax"}, "expected 'host'"),
        (False, {"check": (np.ones((2, 4)), [1, 3])}, "labels from 1 to 3; expected class numbers"),
    ],
)
def test_what_would_be_compared_wrongly_is_refused(
    softmax: bool, options: dict, said: str, tmp_path: Path
) -> None:
    shape, end = ((8, 4), "softmax") if softmax else ((4,), None)
    model = keras.Sequential(
        [keras.Input(shape), keras.layers.Dense(3, activation=end, name="scores")]
    )
    with pytest.raises(FpgaError, match=said):
        tfaccel.export_fpga(model, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_shapes_and_ends_of_a_model_are_read() -> None:
    given = keras.Input((4,), name="given")
    model = keras.Model(given, keras.layers.Dense(3, name="end")(given))
    first, last = layers_of(model)
    assert (first.name, first.last, first.output) == ("given", False, (None, 4))
    assert (last.kind, last.last, last.inputs) == ("Dense", True, ((None, 4),))
