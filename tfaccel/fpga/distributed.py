"""Traces a quantized model with da4ml, in a process that can be ended.

Usage: python -m tfaccel.fpga.distributed MODEL.keras FIGURES.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tfaccel.fpga.convert import load
from tfaccel.fpga.extra import need

STAGE_DELAY = 5  # in da4ml's unit of delay; its own default for a pipeline


def main(saved: str, figures: str) -> None:
    """Writes look-up tables, flip-flops and pipeline stages as JSON."""
    model = load(Path(saved))
    inputs, outputs = need("da4ml.converter").trace_model(model)
    trace = need("da4ml.trace")
    logic = trace.comb_trace(inputs, outputs)
    pipeline = trace.to_pipeline(logic, STAGE_DELAY)
    told = {
        "lut": float(logic.cost),
        "ff": float(pipeline.reg_bits),
        "stages": len(pipeline.solutions),
    }
    Path(figures).write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:3])
