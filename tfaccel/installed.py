"""Which TensorFlow is installed, from package metadata: before it is imported.

A TPU build aborts the process with an unknown libtpu, so importing TensorFlow to check would be too
late.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from importlib import metadata

from tfaccel.errors import StrategyError

TENSORFLOWS = ("tensorflow", "tensorflow-cpu", "tf-nightly", "tf-nightly-cpu", "tensorflow-tpu")

# tensorflow-tpu 2.20.0 imports with libtpu 0.0.14 to 0.0.31, and aborts from 0.0.32 on.
INSTALL_TPU = "pip install 'tensorflow-tpu==2.20.0' 'libtpu>=0.0.14,<0.0.32'"
_LIBTPU: dict[tuple[int, ...], tuple[tuple[int, ...], tuple[int, ...]]] = {
    (2, 20): ((0, 0, 14), (0, 0, 32))
}


def packages() -> dict[str, str]:
    """The versions of the installed packages that contain TensorFlow or drive a TPU."""
    versions = {}
    for name in (*TENSORFLOWS, "libtpu"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def check(versions: Mapping[str, str]) -> None:
    """Checks that TensorFlow can be imported.

    Args:
        versions: as from `packages`.

    Raises:
        StrategyError: when TensorFlow would abort, or two builds overwrite each other.
    """
    if "tensorflow-tpu" not in versions:
        return
    others = [name for name in TENSORFLOWS if name in versions and name != "tensorflow-tpu"]
    if others:
        raise StrategyError(
            f"tfaccel: tensorflow-tpu is installed over {' and '.join(others)}; expected one build "
            f"of TensorFlow; pip uninstall -y {' '.join(others)} tensorflow-tpu, "
            f"then {INSTALL_TPU}."
        )
    known = _LIBTPU.get(_numbers(versions["tensorflow-tpu"])[:2])
    libtpu = versions.get("libtpu")
    if known is not None and not (libtpu and known[0] <= _numbers(libtpu) < known[1]):
        low, high = (".".join(map(str, one)) for one in known)
        raise StrategyError(
            f"tfaccel: tensorflow-tpu {versions['tensorflow-tpu']} is installed with "
            f"{'no libtpu' if libtpu is None else f'libtpu {libtpu}'}; expected libtpu "
            f">={low},<{high} (others end the process); {INSTALL_TPU}."
        )


def check_before_import() -> None:
    """Checks what is installed here, unless TensorFlow has already been imported.

    Raises:
        StrategyError: as `check`, and when there is no TensorFlow.
    """
    if "tensorflow" in sys.modules:
        return
    if importlib.util.find_spec("tensorflow") is None:
        raise StrategyError(
            "tfaccel: TensorFlow is not installed; pip install 'tfaccel[gpu]' on a machine with "
            f"NVIDIA GPUs, 'tfaccel[cpu]' on one without, and for a TPU {INSTALL_TPU}."
        )
    check(packages())


def check_tpu(versions: Mapping[str, str]) -> None:
    """Checks that TensorFlow can drive a TPU in this machine.

    Raises:
        StrategyError: reports what is installed instead.
    """
    check(versions)
    if "tensorflow-tpu" not in versions:
        have = (
            ", ".join(f"{n} {v}" for n, v in versions.items() if n != "libtpu") or "no TensorFlow"
        )
        raise StrategyError(
            f"tfaccel: a TPU was requested and {have} is installed; expected tensorflow-tpu; in a "
            f"fresh environment: {INSTALL_TPU} (its newest release is 2.20.0)."
        )


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version.

    >>> _numbers("0.0.31.dev2025")
    (0, 0, 31)
    """
    numbers = []
    for part in version.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)
