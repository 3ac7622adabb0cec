"""The cost of the firmware, without the vendor's tool and with it.

Without: multiplications by the reuse factor for every model; for quantized ones EBOPs, an upper
bound of "LUT + 55 DSP" (https://arxiv.org/abs/2405.00645), and da4ml's count of look-up tables,
flip-flops and pipeline stages of a design without multipliers (https://arxiv.org/abs/2507.04535).
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tfaccel.errors import FpgaError, FpgaTimeoutError
from tfaccel.fpga import process
from tfaccel.fpga.convert import Node, Project
from tfaccel.fpga.optional_imports import require
from tfaccel.fpga.report import Figure

#: The time limit of da4ml for figures only: it ran past ten minutes on plain models.
DA4ML_LIMIT_S = 120.0

_TOOLS = {
    "Vitis": "vitis-run",
    "Vivado": "vivado_hls",
    "VivadoAccelerator": "vivado_hls",
    "Quartus": "i++",
    "Catapult": "catapult",
}
# The vendor's figures, by their names in hls4ml's parser.
_SYNTHESISED = {
    "LUT": ("LUT", ""),
    "FF": ("FF", ""),
    "DSP": ("DSP", ""),
    "DSP48E": ("DSP", ""),
    "BRAM_18K": ("BRAM_18K", ""),
    "BestLatency": ("latency, best", "cycles"),
    "WorstLatency": ("latency, worst", "cycles"),
    "IntervalMax": ("interval", "cycles"),
}


def multipliers(nodes: Iterable[Node]) -> tuple[Figure, ...]:
    """Multiplications per row, and the multipliers that perform them.

    >>> multipliers([Node("a", 1, (4,), 64, 4)])[1].value
    16
    """
    counted = list(nodes)
    total = sum(one.multiplications for one in counted)
    needed = sum(math.ceil(one.multiplications / one.reuse_factor) for one in counted)
    return (
        Figure("multiplications", total, "estimated", "a row", "weights that are not zero"),
        Figure("multipliers", needed, "estimated", "", "multiplications / reuse factor"),
    )


def ebops(model: Any) -> tuple[Figure, ...]:
    """Effective bit operations of a calibrated quantized model."""
    total = sum(int(layer.ebops) for layer in model.layers if getattr(layer, "enable_ebops", False))
    return (Figure("EBOPs", total, "estimated", "", "HGQ2, about LUT + 55 DSP"),)


def da4ml(saved: Path, log: Path, limit_s: float) -> tuple[tuple[Figure, ...], str]:
    """da4ml's figures of a quantized model, or why there are none.

    Args:
        saved: the calibrated model.
        log: gets the output of da4ml.
        limit_s: seconds it may take, at most `DA4ML_LIMIT_S`.

    Returns:
        The figures, and a note when there are none.
    """
    with tempfile.TemporaryDirectory() as scratch:
        figures = Path(scratch) / "figures.json"
        command = [
            sys.executable,
            "-m",
            "tfaccel.fpga.distributed_arithmetic",
            str(saved),
            str(figures),
        ]
        limit_s = min(limit_s, DA4ML_LIMIT_S)
        try:
            process.run(command, what="da4ml", log=log, limit_s=limit_s, cwd=Path.cwd())
        except FpgaTimeoutError:
            return (), f"no figures from da4ml: it exceeded its timeout of {limit_s:g} s"
        except FpgaError:
            return (), f"no figures from da4ml: it failed, see {log}"
        values = json.loads(figures.read_text())
    source = "da4ml, without multipliers"
    return (
        Figure("LUT", values["lut"], "estimated", "", source),
        Figure("FF", values["ff"], "estimated", "", source),
        Figure("latency", values["stages"], "estimated", "stages", source),
    ), ""


def require_tool(backend: str) -> None:
    """Refuses to build without the vendor's tool.

    Raises:
        FpgaError: it is not on the PATH.
    """
    if shutil.which(_TOOLS[backend]) is None:
        raise FpgaError(
            f"{_TOOLS[backend]} is not on the PATH, and build=True needs it for {backend}; "
            "source the tool's settings script, or leave build out for estimates."
        )


def build(project: Project, backend: str, log: Path, limit_s: float) -> tuple[Figure, ...]:
    """Synthesises with the vendor's tool, and reads its report.

    Raises:
        FpgaError: the tool failed, or left no report.
        FpgaTimeoutError: it exceeded its timeout.
    """
    options = "" if backend in ("Quartus", "Catapult") else "csim=False, synth=True"
    code = (
        f"import sys, hls4ml; hls4ml.converters.link_existing_project(sys.argv[1]).build({options})"
    )
    process.run(
        [sys.executable, "-c", code, str(project.directory)],
        what=f"{_TOOLS[backend]}",
        log=log,
        limit_s=limit_s,
        cwd=project.directory,
    )
    with log.open("a") as out, contextlib.redirect_stdout(out):  # the parsers print
        values = _report(require("hls4ml").report, backend, str(project.directory))
    figures = synthesised(values or {}, _TOOLS[backend])
    if not figures:
        raise FpgaError(f"{_TOOLS[backend]} left no report in {project.directory}.", log)
    return figures


def _report(parsers: Any, backend: str, directory: str) -> Any:
    if backend == "Quartus":
        return parsers.parse_quartus_report(directory, write_to_file=False)
    if backend == "Catapult":
        return parsers.parse_catapult_report(directory)
    return parsers.parse_vivado_report(directory)


def synthesised(values: Mapping[str, Any], tool: str) -> tuple[Figure, ...]:
    """The figures in what hls4ml's report parser returns.

    >>> synthesised({"CSynthesisReport": {"LUT": "120"}}, "vitis-run")[0].value
    120.0
    """
    flat = values.get("CSynthesisReport", values)
    return tuple(
        Figure(name, float(flat[key]), "synthesised", unit, tool)
        for key, (name, unit) in _SYNTHESISED.items()
        if _is_number(flat.get(key))
    )


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
