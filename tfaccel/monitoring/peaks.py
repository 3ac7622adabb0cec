"""Peak rates of devices, from the vendors' data sheets: dense matrix multiplications.

NVIDIA's sheets give twice as much for 16 bits and TF32, "with sparsity"; half of it is used here.
"""

from __future__ import annotations

from dataclasses import dataclass

_DATACENTER = "https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet"


@dataclass(frozen=True)
class Peak:
    """Of one device, in TFLOP/s.

    Attributes:
        half: with bfloat16 (float16 where a card has no bfloat16).
        single: with float32, as TensorFlow computes it by default: as TF32 where a card supports
            it.
        source: the data sheet.
    """

    half: float
    single: float
    source: str


# The first name contained in a card's applies.
PEAKS = {
    "H100 PCIe": Peak(756.0, 378.0, _DATACENTER),
    "H100": Peak(989.0, 494.0, _DATACENTER),
    "H200": Peak(989.0, 494.0, "https://www.nvidia.com/en-us/data-center/h200/"),
    "A100": Peak(312.0, 156.0, "https://www.nvidia.com/en-us/data-center/a100/"),
}


def peak_flops(device: str, dtype: str) -> float | None:
    """Floating-point operations per second; None for a device or a dtype that is not in the table.

    Args:
        device: the vendor's name for it.
        dtype: in which the matrices are multiplied: ``"float32"``, ``"bfloat16"`` or ``"float16"``.

    >>> peak_flops("NVIDIA H200", "bfloat16")
    989000000000000.0
    >>> peak_flops("AMD EPYC", "float32") is None
    True
    """
    peak_of_device = next((peak for name, peak in PEAKS.items() if name in device), None)
    if peak_of_device is None or dtype not in ("float32", "bfloat16", "float16"):
        return None
    return (peak_of_device.single if dtype == "float32" else peak_of_device.half) * 1e12
