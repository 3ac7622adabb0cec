"""`tfaccel tpu check`: the command line of a check."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from rich.console import Console

from tfaccel.tpu.check import CheckTimeoutError, check

CODES = {"fits": 0, "too big": 1, "refused": 1}
_EPILOG = """exit codes:
  0  the step fits
  1  it does not fit, or the compiler rejects it
  2  usage error, or the extra tpu-check is not installed
  3  timeout

example:
  tfaccel tpu check examples/language_model.py:build_model --topology v5e:2x2 --batch-size 256"""


def main(argv: Sequence[str]) -> int:
    """Checks a model and prints the report.

    Args:
        argv: the arguments after ``tfaccel tpu check``.

    Returns:
        The exit code.
    """
    args = _parser().parse_args(argv)
    console = Console(highlight=False, soft_wrap=True)
    try:
        report = check(
            args.target,
            args.batch_size,
            args.topology,
            shape=args.input_shape,
            dtype=args.dtype,
            mixed_bfloat16=args.precision == "mixed_bfloat16",
            search=not args.no_search,
            timeout_s=args.timeout,
        )
    except CheckTimeoutError as error:
        Console(stderr=True, soft_wrap=True).print(str(error), markup=False)
        return 3
    if args.json:
        print(report.to_json())
    else:
        console.print("\n".join(report.lines()), markup=False)
    return CODES[report.verdict]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tfaccel tpu check",
        description="Compiles a training step with the real TPU compiler; no TPU is needed.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", help="path.py:function that builds a model, or a .keras file")
    parser.add_argument(
        *("--batch-size", "--batch"), type=int, required=True, help="global batch size"
    )
    parser.add_argument(
        "--topology", default="v5e:1x1", help="TPU topology, such as v5e:2x2, v4 or v6e"
    )
    parser.add_argument(
        "--input-shape", type=_shape, help="shape of one row, if unknown from the model: 224,224,3"
    )
    parser.add_argument("--dtype", type=_dtype, default="float32", help="dtype of --input-shape")
    parser.add_argument(
        "--precision",
        choices=("float32", "mixed_bfloat16"),
        default="float32",
        help="Keras dtype policy under which the model is built (%(default)s)",
    )
    parser.add_argument(
        "--no-search", action="store_true", help="do not search for a batch size that fits"
    )
    parser.add_argument("--timeout", type=_seconds, default=600.0, help="seconds (%(default)g)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _shape(text: str) -> list[int]:
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*,?", text):
        raise argparse.ArgumentTypeError(f"{text!r}; expected sizes, such as 224,224,3")
    return [int(part) for part in text.split(",") if part]


def _dtype(text: str) -> str:
    """Parses a Keras dtype that TPUs support."""
    names = ("float32", "bfloat16", "float16", "int32", "int64", "uint8", "bool")
    if text not in names:
        raise argparse.ArgumentTypeError(f"{text!r}; expected one of {', '.join(names)}")
    return text


def _seconds(text: str) -> float:
    seconds = float(text)
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"{text!r}; expected more than 0")
    return seconds
