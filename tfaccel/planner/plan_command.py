"""`tfaccel plan`: its arguments, and what it prints."""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

_EPILOG = """exit codes:
  0  a candidate fits
  1  none does, or it is not known
  2  a mistake in the arguments

example:
  tfaccel plan examples/language_model.py:build_model --devices 8xH100 --batch 512"""


def main(argv: Sequence[str]) -> int:
    """Plans a model and prints the table.

    Args:
        argv: the arguments after ``tfaccel plan``.

    Returns:
        The exit code.
    """
    args = _parser().parse_args(argv)
    # Devices of this machine are not used.
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from rich.console import Console

    from tfaccel.planner import light_import

    light_import.import_tensorflow()
    from tfaccel.planner import picture, plan_report
    from tfaccel.planner.plan import plan

    # TensorFlow's and Keras's objects stay: collections, which are fewer, need not look at them.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    found = plan(
        args.target,
        args.devices,
        args.batch,
        precision=args.precision,
        input_shape=args.input_shape,
        dtype=args.dtype,
        device_file=args.device_file,
    )
    if args.json:
        print(json.dumps(found.to_dict()))
    else:
        console = Console(highlight=False, soft_wrap=True)
        if not console.is_terminal:
            console = Console(highlight=False, soft_wrap=True, width=220)
        for part in plan_report.render(found):
            console.print(part)
    if args.picture:
        Path(args.picture).write_text(picture.svg(found), "utf-8")
    return 0 if found.recommended is not None else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tfaccel plan",
        description="Plans the training of a model; nothing is allocated, and nothing is run.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", help="path.py:function that builds a model, or a .keras file")
    parser.add_argument(
        "--devices",
        required=True,
        help="such as 8xH100, 2x4xA100 (two hosts of four), v5e-8, or here: measured",
    )
    parser.add_argument("--batch", type=int, required=True, help="rows of the global batch")
    parser.add_argument(
        "--precision",
        choices=("float32", "mixed_bfloat16", "mixed_float16"),
        help="plan this one alone",
    )
    parser.add_argument(
        "--input-shape", type=_shape, help="of one row, where the model does not say: 224,224,3"
    )
    parser.add_argument("--dtype", default="float32", help="of that input")
    parser.add_argument("--device-file", help="a TOML file with devices of your own")
    parser.add_argument("--picture", help="draw the memory of all candidates into this SVG file")
    parser.add_argument("--json", action="store_true")
    return parser


def _shape(text: str) -> list[int]:
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*,?", text):
        raise argparse.ArgumentTypeError(f"{text!r}, expected sizes, such as 224,224,3")
    return [int(part) for part in text.split(",") if part]
