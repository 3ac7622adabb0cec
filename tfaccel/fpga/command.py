r"""`tfaccel fpga`: from a .keras file to checked firmware.

    tfaccel fpga export model.keras --out firmware --check held_out.npz
    tfaccel fpga export model.keras --out sweep --check held_out.npz \
        --precision 'fixed<8,4>,fixed<12,6>,fixed<16,6>'

Exit codes: 0 done, 1 the firmware does not agree with Keras (in no precision of several), 2 a
usage error or a tool that failed, 3 a timeout of a tool.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfaccel.errors import FpgaCheckError, FpgaError, FpgaTimeoutError
from tfaccel.fpga.export_settings import BACKENDS, IO_TYPES, SOFTMAX, STRATEGIES

CHECK_FAILED, TIMED_OUT = 1, 3


def main(argv: Sequence[str]) -> int:
    """Runs one command.

    Args:
        argv: words of the command line.

    Returns:
        The exit code.

    Raises:
        FpgaError: invalid arguments, or a tool that failed.
    """
    args = _parser().parse_args(argv)
    try:
        return _export(args)
    except FpgaTimeoutError as error:
        print(f"tfaccel fpga: error: {error}", file=sys.stderr)
        return TIMED_OUT


def _export(args: argparse.Namespace) -> int:
    from tfaccel.fpga.export import export_fpga
    from tfaccel.fpga.precision_sweep import sweep

    options = {
        name: getattr(args, name)
        for name in (
            "backend",
            "part",
            "clock_ns",
            "io_type",
            "reuse_factor",
            "strategy",
            "softmax",
            "check",
            "min_agreement",
            "calibrate",
            "estimate",
            "build",
            "timeout_s",
        )
    }
    model = _load(args.model)
    if len(args.precision) > 1:
        report: Any = sweep(model, args.out, args.precision, **options)
        # A sweep looks for a precision that will do: it fails when there is none.
        failed = all(one.check.status == "failed" for one in report.reports)
        code = CHECK_FAILED if failed else 0
    else:
        try:
            report = export_fpga(model, args.out, precision=args.precision[0], **options)
            code = 0
        except FpgaCheckError as error:
            report, code = error.report, CHECK_FAILED
            print(f"tfaccel fpga: {error}", file=sys.stderr)
    if args.json:
        print(report.to_json())
    else:
        report.show()
    return code


def _load(path: Path) -> Any:
    from tfaccel.fpga.convert import load

    if path.suffix != ".keras" or not path.is_file():
        raise FpgaError(f"{path} is no .keras file; save the model with model.save('m.keras').")
    try:
        return load(path)
    except FpgaError:
        raise
    except Exception as error:  # Keras raises all kinds, for a class it does not know too
        reason = " ".join(str(error).split())[:200]
        raise FpgaError(
            f"{path} cannot be loaded ({reason}); models of custom classes cannot be exported."
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tfaccel fpga",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    export = commands.add_parser("export", help="write, emulate and check firmware")
    export.add_argument("model", type=Path, help="a .keras file")
    export.add_argument("--out", type=Path, required=True, help="a new or empty directory")
    export.add_argument(
        "--check", type=Path, help=".npz file with the rows to compare as x (and y for accuracy)"
    )
    export.add_argument("--calibrate", type=Path, help=".npz file with the training rows as x")
    export.add_argument(
        "--min-agreement",
        type=float,
        default=0.99,
        metavar="FRACTION",
        help="fraction of rows that must agree with Keras (%(default)g)",
    )
    export.add_argument(
        "--backend", choices=BACKENDS, default="Vitis", help="backend of hls4ml (%(default)s)"
    )
    export.add_argument("--part", help="part number of the FPGA")
    export.add_argument(
        "--clock-ns", type=float, default=5.0, help="clock period in nanoseconds (%(default)g)"
    )
    export.add_argument(
        "--precision",
        type=_precisions,
        default=["fixed<16,6>"],
        help="fixed-point type (fixed<16,6>); several, separated by commas, are compared in a "
        "table and a plot",
    )
    export.add_argument(
        "--io-type", choices=IO_TYPES, default="io_parallel", help="io_type of hls4ml (%(default)s)"
    )
    export.add_argument(
        "--reuse-factor", type=int, default=1, help="reuse factor of hls4ml (%(default)d)"
    )
    export.add_argument(
        "--strategy", choices=STRATEGIES, default="latency", help="strategy of hls4ml"
    )
    export.add_argument("--softmax", choices=SOFTMAX, default="host", help="where softmax runs")
    export.add_argument(
        "--no-estimate", dest="estimate", action="store_false", help="do not estimate resources"
    )
    export.add_argument("--build", action="store_true", help="synthesise with the vendor's tool")
    export.add_argument(
        "--timeout",
        dest="timeout_s",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="for each tool (%(default)g)",
    )
    export.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _precisions(text: str) -> list[str]:
    """Types, with commas between them and within.

    >>> _precisions("fixed<8,4>,fixed<12,6>")
    ['fixed<8,4>', 'fixed<12,6>']
    """
    return re.split(r",(?![^<]*>)", text)
