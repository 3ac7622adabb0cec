"""Traces a quantized model with da4ml, in a process that can be killed.

Usage: python -m tfaccel.fpga.distributed_arithmetic MODEL.keras FIGURES.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tfaccel.fpga.convert import load
from tfaccel.fpga.optional_imports import require

STAGE_DELAY = 5  # in da4ml's unit of delay; its own default for a pipeline


def main(saved: str, figures: str) -> None:
    """Writes look-up tables, flip-flops and pipeline stages as JSON."""
    model = _with_relu_layers(load(Path(saved)))
    inputs, outputs = require("da4ml.converter").trace_model(model)
    trace = require("da4ml.trace")
    logic = trace.comb_trace(inputs, outputs)
    pipeline = trace.to_pipeline(logic, STAGE_DELAY)
    result = {
        "lut": float(logic.cost),
        "ff": float(pipeline.reg_bits),
        "stages": len(pipeline.solutions),
    }
    Path(figures).write_text(json.dumps(result))


def _with_relu_layers(model: Any) -> Any:
    """The same model for da4ml, which supports the layer ReLU but not Activation("relu")."""
    import keras

    def change(layer: Any) -> Any:
        if isinstance(layer, keras.layers.Activation) and layer.__module__.startswith("keras."):
            return keras.layers.ReLU(name=layer.name)
        return layer.__class__.from_config(layer.get_config())

    cloned = keras.models.clone_model(model, clone_function=change)
    cloned.set_weights(model.get_weights())
    return cloned


if __name__ == "__main__":
    main(*sys.argv[1:3])
