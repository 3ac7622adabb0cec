"""The settings of an export, checked before anything heavy is imported."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from tfaccel.errors import FpgaError

# Those that g++ can emulate: oneAPI needs icpx and Libero shls before the first comparison.
BACKENDS = ("Vitis", "Vivado", "VivadoAccelerator", "Quartus", "Catapult")
IO_TYPES = ("io_parallel", "io_stream")
STRATEGIES = ("latency", "resource", "distributed_arithmetic")
SOFTMAX = ("host", "device", "argmax")


@dataclass(frozen=True)
class Settings:
    """How a model becomes firmware.

    Attributes:
        backend: one of `BACKENDS`.
        part: the FPGA; the backend's own default when None.
        clock_ns: the clock's period.
        precision: the type of numbers, as ``fixed<16,6>``: total bits, bits left of the point. A
            quantized model has its own types.
        io_type: ``"io_parallel"`` or ``"io_stream"``.
        reuse_factor: how many multiplications one multiplier performs.
        strategy: hls4ml's, one of `STRATEGIES`. It is unrelated to `tf.distribute`.
        softmax: where the last softmax runs, see `tfaccel.fpga.softmax`.
        timeout_s: seconds that each tool may take.
    """

    backend: str = "Vitis"
    part: str | None = None
    clock_ns: float = 5.0
    precision: str = "fixed<16,6>"
    io_type: str = "io_parallel"
    reuse_factor: int = 1
    strategy: str = "latency"
    softmax: str = "host"
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        for name, values in (
            ("backend", BACKENDS),
            ("io_type", IO_TYPES),
            ("strategy", STRATEGIES),
            ("softmax", SOFTMAX),
        ):
            if (value := getattr(self, name)) not in values:
                raise FpgaError(f"{name}={value!r}; expected one of {', '.join(values)}.")
        check_precision(self.precision)
        if self.part is not None and not re.fullmatch(r"[\w.+-]+", str(self.part)):
            raise FpgaError(
                f"part={self.part!r}; expected an FPGA's name such as xcu250-figd2104-2L-e."
            )
        if type(self.reuse_factor) is not int or self.reuse_factor < 1:
            raise FpgaError(f"reuse_factor={self.reuse_factor!r}; expected a positive integer.")
        for name in ("clock_ns", "timeout_s"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
                raise FpgaError(f"{name}={value!r}; expected a number above 0.")


def check_precision(text: str) -> tuple[int, int]:
    """The bits of a fixed-point type, in total and left of the point.

    >>> check_precision("fixed<16,6>")
    (16, 6)

    Raises:
        FpgaError: it is not such a type.
    """
    match = re.fullmatch(r"fixed<\s*(\d+)\s*,\s*(-?\d+)\s*>", str(text))
    if match is None or not 2 <= int(match[1]) <= 64:
        raise FpgaError(
            f"precision={text!r}; expected a fixed-point type of 2 to 64 bits such as "
            "fixed<16,6>: bits in all, and how many of them stand left of the point."
        )
    return int(match[1]), int(match[2])
