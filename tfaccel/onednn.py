"""oneDNN's kernels on processors where TensorFlow disables them by default.

TensorFlow uses them where a processor has instructions for neural networks (AVX-512 VNNI and
similar, `IsMKLEnabled` in tensorflow/core/util/util.cc). On others it computes with Eigen, for
which its wheels are built without AVX2 and FMA; oneDNN uses whatever the processor has. On a core
of an AMD EPYC with AVX2 a training step took 0.54 (MLP), 0.68 (CNN) and 0.95 (transformer) of the
time with it. Numbers differ in the last bits, as they do between two processors.

TensorFlow reads `VARIABLE` once, when it is imported; a value set by the user is kept.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from functools import cache
from pathlib import Path

VARIABLE = "TF_ENABLE_ONEDNN_OPTS"
_NEEDED = {"avx2", "fma"}


def prefer(environ: MutableMapping[str, str]) -> None:
    """Requests oneDNN in an environment that does not set it, if this processor benefits."""
    if is_faster():
        environ.setdefault(VARIABLE, "1")


@cache
def is_faster() -> bool:
    """Whether this is an x86 processor with AVX2 and FMA; False where that cannot be read."""
    try:
        return has_avx2(Path("/proc/cpuinfo").read_text())
    except OSError:
        return False


def has_avx2(cpuinfo: str) -> bool:
    r"""Whether Linux's description of the processors lists AVX2 and FMA.

    >>> has_avx2("processor : 0\nflags : fpu sse4_1 avx avx2 fma\n"), has_avx2("flags : avx")
    (True, False)
    """
    flags = [line.split() for line in cpuinfo.splitlines() if line.startswith("flags")]
    return bool(flags) and set(flags[0]) >= _NEEDED
