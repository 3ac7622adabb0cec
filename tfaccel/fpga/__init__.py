"""From a trained Keras model to checked firmware: allowed, converted, emulated, compared.

    report = tfaccel.export_fpga(model, "firmware", check=(x_held_out, y_held_out))

hls4ml writes the firmware and HGQ2 trains it quantized; this package rejects what they translate
wrongly, and compares every export with Keras, bit by bit. Start with `export.py`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfaccel.fpga.emulator import emulate
    from tfaccel.fpga.export import export_fpga
    from tfaccel.fpga.precision_sweep import sweep
    from tfaccel.fpga.qat import calibrate, quantize
    from tfaccel.fpga.report import Report

__all__ = ["Report", "calibrate", "emulate", "export_fpga", "main", "quantize", "sweep"]

# No module has one of these names: once imported, it would shadow the function.
_HOME = {
    "Report": "tfaccel.fpga.report",
    "calibrate": "tfaccel.fpga.qat",
    "emulate": "tfaccel.fpga.emulator",
    "export_fpga": "tfaccel.fpga.export",
    "quantize": "tfaccel.fpga.qat",
    "sweep": "tfaccel.fpga.precision_sweep",
}


def main(argv: Sequence[str]) -> int:
    """`tfaccel fpga`: see `tfaccel.fpga.command`."""
    from tfaccel.fpga.command import main as run

    return run(argv)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tfaccel.fpga' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
