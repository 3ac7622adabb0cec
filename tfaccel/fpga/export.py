"""All steps of an export: allow, calibrate, remove softmax, convert, compile, compare, estimate."""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfaccel.errors import FpgaCheckError, FpgaError
from tfaccel.fpga import convert, emulator, estimate, output_directory, qat, verify
from tfaccel.fpga.allowlist import check_layers
from tfaccel.fpga.data import Rows, generated, rows_of
from tfaccel.fpga.export_settings import Settings
from tfaccel.fpga.layer import Layer, Shape, layers_of
from tfaccel.fpga.optional_imports import require
from tfaccel.fpga.report import Check, Figure, Report
from tfaccel.fpga.softmax import ends, is_softmax, one_hot, without_softmax


def export_fpga(
    model: Any,
    directory: str | Path,
    *,
    backend: str = "Vitis",
    part: str | None = None,
    clock_ns: float = 5.0,
    precision: str = "fixed<16,6>",
    io_type: str = "io_parallel",
    reuse_factor: int = 1,
    strategy: str = "latency",
    softmax: str = "host",
    check: Any = None,
    min_agreement: float = 0.99,
    calibrate: Any = None,
    estimate: bool = True,
    build: bool = False,
    timeout_s: float = 600.0,
) -> Report:
    """Turns a trained Keras model into an FPGA project, and compares it with Keras bit by bit.

    Args:
        model: trained under any strategy; plain, or from `tfaccel.fpga.quantize`.
        directory: where the project goes: new, empty, or an earlier export. With several workers
            all must call, and workers other than the chief write next to it.
        backend: ``"Vitis"``, ``"Vivado"``, ``"VivadoAccelerator"``, ``"Quartus"``, ``"Catapult"``.
        part: the FPGA; the backend's default when None.
        clock_ns: the clock's period.
        precision: of every number in a plain model: total bits, bits left of the point.
        io_type: ``"io_parallel"`` or ``"io_stream"``.
        reuse_factor: multiplications per multiplier.
        strategy: hls4ml's: ``"latency"``, ``"resource"``, ``"distributed_arithmetic"``.
        softmax: where the last softmax runs: ``"host"`` cuts it off, ``"argmax"`` marks the class,
            ``"device"`` keeps it.
        check: rows to compare on, ideally held out: an array, ``(x, y)``, or an .npz file with x
            and y. Without it, rows are generated and the report is "unverified".
        min_agreement: the fraction of the rows that must agree. A quantized model must be
            bit-exact.
        calibrate: training rows that set the ranges of a quantized model (its own change with it);
            without them, the ranges are those of training, widened by `check`.
        estimate: also estimate resources.
        build: also synthesise with the vendor's tool, and read its report.
        timeout_s: seconds that each tool may take; it does not limit hls4ml's own translation,
            which runs in this process.

    Returns:
        The report.

    Raises:
        FpgaError: the model cannot be exported, or a tool failed; `log` holds its output.
        FpgaTimeoutError: a tool exceeded its timeout.
        FpgaCheckError: the firmware does not agree with Keras; `report` has the differences.

    Example:
        ```python
        report = tfaccel.export_fpga(model, "firmware", check=(x_held_out, y_held_out))
        print(report.verdict)
        ```
    """
    settings = Settings(
        backend, part, clock_ns, precision, io_type, reuse_factor, strategy, softmax, timeout_s
    )
    if not 0 <= min_agreement <= 1:
        raise FpgaError(f"min_agreement={min_agreement:g}; expected a fraction between 0 and 1.")
    if build:
        _estimate.require_tool(backend)
    prepared = prepare(model, directory, settings, check=check, calibrate=calibrate)
    try:
        report = _export(prepared, settings, min_agreement, estimate, build)
        (prepared.home / "report.json").write_text(report.to_json())
    finally:
        output_directory.record_files(prepared.home)
    if report.check.status == "failed":
        raise FpgaCheckError(
            f"{report.verdict}; expected {_expected(report)}, "
            f"or see the error of each layer in {prepared.home / 'report.json'}.",
            report,
        )
    return report


_estimate = estimate  # the argument of the same name shadows the module


@dataclass(frozen=True)
class _Prepared:
    """A model being exported.

    Attributes:
        home: the directory of the export.
        name: of the model.
        device: the functional model that becomes firmware.
        saved: its file.
        quantized: whether it uses HGQ2.
        host: for each output, whether softmax is left to the host.
        ends: for each output, the activation it comes from.
        rows: to compare on.
        notes: what the reader should know.
    """

    home: Path
    name: str
    device: Any
    saved: Path
    quantized: bool
    host: tuple[bool, ...]
    ends: tuple[str, ...]
    rows: Rows
    notes: tuple[str, ...]

    @property
    def has_softmax(self) -> bool:
        return "softmax" in self.ends

    @property
    def log(self) -> Path:
        return self.home / output_directory.LOG


def prepare(
    model: Any, directory: str | Path, settings: Settings, *, check: Any, calibrate: Any
) -> _Prepared:
    """Everything before hls4ml: refusals first, so that nothing is written in vain."""
    layers = layers_of(model)
    check_layers(layers)
    shapes = [tuple(one.shape) for one in model.inputs]
    rows = generated(layers, shapes) if check is None else rows_of(check, shapes)
    _check_labels(rows, tuple(model.outputs[0].shape))
    quantized = convert.is_quantized(model)
    if settings.softmax != "host":
        _check_softmax(layers, settings.softmax, quantized)
    if quantized and settings.backend in ("Quartus", "Catapult"):
        raise FpgaError(
            f"hls4ml's {settings.backend} backend fails on quantized models; use Vitis or Vivado."
        )
    if quantized and settings.io_type != "io_parallel":
        raise FpgaError(
            f"io_type={settings.io_type!r} on a quantized model; expected 'io_parallel': each of "
            "its numbers may have a type of its own."
        )
    require("hls4ml")
    convert.require_compiler()
    home = output_directory.prepare(
        output_directory.worker_directory(directory, getattr(model, "distribute_strategy", None))
    )
    made_up = rows.generated and calibrate is None
    notes = _calibrated(model, rows, calibrate) if quantized and not made_up else []
    device, host = _functional(model, home), (False,) * len(model.outputs)
    if quantized and made_up:  # which must not change the user's model
        notes = _calibrated(device, rows, None)
    came_from = ends(device)
    if settings.softmax == "host":
        device, host = without_softmax(device)
    saved = home / "model.keras"
    device.save(saved)
    return _Prepared(
        home, model.name, device, saved, quantized, host, came_from, rows, tuple(notes)
    )


def _check_labels(rows: Rows, output: Shape) -> None:
    if rows.y is None or len(output) != 2 or output[1] == 1:
        return
    low, high, last = int(rows.y.min()), int(rows.y.max()), int(output[1] or 0) - 1
    if low < 0 or high > last:
        raise FpgaError(
            f"labels from {low} to {high}; expected class numbers from 0 to {last}, as many as the "
            "model has outputs; renumber y, or leave it out."
        )


def _check_softmax(layers: list[Layer], mode: str, quantized: bool) -> None:
    """Refuses a softmax in the firmware where it would be wrong."""
    for layer in layers:
        if not (layer.last and is_softmax(layer)):
            continue
        if quantized:
            raise FpgaError(
                f"softmax={mode!r} on a quantized model; expected 'host': only logits are "
                "bit-exact."
            )
        if len(layer.output) > 2:
            raise FpgaError(
                f"{layer.name} ({layer.kind}): softmax={mode!r} of shape {layer.output}; expected "
                "'host': hls4ml treats all its positions as one row of scores."
            )


def _export(
    prepared: _Prepared, settings: Settings, min_agreement: float, estimated: bool, build: bool
) -> Report:
    home, log, rows = prepared.home, prepared.log, prepared.rows
    project = convert.convert(prepared.saved, home, settings, log)
    convert.compile_project(project, settings, log)
    (home / emulator.MANIFEST).write_text(_manifest(project, prepared))
    x = [np.asarray(one, np.float32) for one in rows.x]
    answered, _ = emulator.run(project, x, log=log, limit_s=settings.timeout_s)
    expected = reference(prepared.device, x)
    if prepared.has_softmax and settings.softmax == "argmax":
        expected = [one_hot(one) for one in expected]
    check = verify.compare(
        answered,
        expected,
        ends=prepared.ends,
        y=rows.y,
        generated=rows.generated,
        quantized=prepared.quantized,
        min_agreement=min_agreement,
    )
    notes = list(prepared.notes)
    if check.status == "failed":
        try:
            check = _with_layers(check, prepared, settings, x)
        except FpgaError as error:  # the check has failed anyway
            notes.append(f"no error of each layer: {error}")
    figures: list[Figure] = []
    if estimated:
        if settings.strategy != "distributed_arithmetic":  # which adds instead
            figures += _estimate.multipliers(project.nodes)
        if prepared.quantized:
            figures += _estimate.ebops(prepared.device)
            da4ml_figures, why = _estimate.da4ml(prepared.saved, log, settings.timeout_s)
            figures += da4ml_figures
            notes += [why] if why else []
    if build:
        figures += _estimate.build(project, settings.backend, log, settings.timeout_s)
    if settings.reuse_factor > 1:
        notes.append("emulation cannot see the reuse factor: it gives the same numbers for all")
    return Report(
        directory=home,
        model=prepared.name,
        quantized=prepared.quantized,
        backend=settings.backend,
        precision=settings.precision,
        softmax=settings.softmax if prepared.has_softmax else "none",
        check=check,
        figures=tuple(figures),
        notes=tuple(notes),
    )


def reference(model: Any, x: list[np.ndarray]) -> list[np.ndarray]:
    """Keras's outputs.

    Raises:
        FpgaError: Keras fails on these rows.
    """
    try:
        expected = model.predict(x if len(x) > 1 else x[0], verbose=0)
    except Exception as error:  # TensorFlow's own, for an index out of an Embedding's range
        lines = [one.strip() for one in str(error).splitlines() if one.strip()]
        reason = next((one for one in lines if one.startswith("indices[")), (lines or [""])[0])
        raise FpgaError(
            f"Keras fails on the rows of the check ({reason[:160]}); give rows as in training."
        ) from error
    return list(expected) if isinstance(expected, (list, tuple)) else [expected]


def _with_layers(
    check: Check, prepared: _Prepared, settings: Settings, x: list[np.ndarray]
) -> Check:
    """Writes and compiles the project again, with code that records each layer's output."""
    some = [one[: verify.TRACED_ROWS] for one in x]
    home = prepared.home / "trace"
    try:
        project = convert.convert(prepared.saved, home, settings, prepared.log, trace=True)
        convert.compile_project(project, settings, prepared.log)
        nodes = [one for one in project.nodes if one.traced]
        _, traced = emulator.run(
            project, some, log=prepared.log, limit_s=settings.timeout_s, trace=nodes
        )
    finally:
        shutil.rmtree(home, ignore_errors=True)
    return dataclasses.replace(check, layers=verify.layer_errors(prepared.device, some, traced))


def _calibrated(model: Any, rows: Rows, data: Any) -> list[str]:
    if data is not None:
        qat.calibrate(model, data)
        return []
    trace_minmax = require("hgq.utils").trace_minmax
    arrays = [np.asarray(one, np.float32) for one in rows.x]
    # Without a reset: the check's range may be smaller than that of later data.
    trace_minmax(model, arrays[0] if len(arrays) == 1 else arrays, reset=False)
    by = "made-up rows" if rows.generated else "the rows of the check"
    return [
        f"ranges are those of training, widened by {by}; give the training set as calibrate to be "
        "sure that none is too small"
    ]


def _functional(model: Any, home: Path) -> Any:
    """A copy on one device, for a model of any strategy."""
    import keras

    path = home / "model.keras"
    model.save(path)
    copy = convert.load(path)
    return keras.Model(copy.inputs, copy.outputs, name=copy.name)


def _manifest(project: convert.Project, prepared: _Prepared) -> str:
    entry = {
        "stamp": project.stamp,
        "inputs": project.inputs,
        "outputs": [one.shape[1:] for one in prepared.device.outputs],
        "host": prepared.host,
    }
    return json.dumps({"format": 1, "project": entry}, indent=1)


def _expected(report: Report) -> str:
    if report.quantized:
        return "every row bit-exact; calibrate it on rows that reach as far as these"
    return f"{report.check.required:.2%}; give it more bits with precision"
